//! The other end of `agent-check`: answers every question of haproxy with one word, when it may.

#![allow(dead_code, reason = "each test program uses its part")]
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

/// Ten times what so many questions should take.
const SOON: Duration = Duration::from_secs(30);

pub(crate) struct Agent {
    pub(crate) port: u16,
    word: watch::Sender<String>,
    asked: watch::Sender<u64>,
    gate: Arc<Semaphore>,
    _task: JoinSet<()>,
}

impl Agent {
    pub(crate) async fn start(word: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (word, asked) = (watch::Sender::new(word.to_owned()), watch::Sender::new(0));
        let gate = Arc::new(Semaphore::new(Semaphore::MAX_PERMITS));
        let (words, count, open) = (word.subscribe(), asked.clone(), Arc::clone(&gate));
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut answers = JoinSet::new();
            loop {
                let Ok((mut stream, _)) = listener.accept().await else {
                    continue;
                };
                count.send_modify(|count| *count += 1);
                let (words, open) = (words.clone(), Arc::clone(&open));
                answers.spawn(async move {
                    let _turn = open.acquire().await;
                    let answer = format!("{}\n", *words.borrow());
                    stream.write_all(answer.as_bytes()).await.is_ok()
                });
            }
        });
        Self {
            port,
            word,
            asked,
            gate,
            _task: task,
        }
    }

    pub(crate) fn says(&self, word: &str) {
        self.word.send_replace(word.to_owned());
    }

    /// Waits until haproxy has asked so many times more.
    pub(crate) async fn asked(&self, times: u64) {
        let mut asked = self.asked.subscribe();
        let now = *asked.borrow();
        let more = asked.wait_for(|count| *count >= now + times);
        tokio::time::timeout(SOON, more).await.unwrap().unwrap();
    }

    /// Questions wait for their answer.
    pub(crate) fn hold(&self) {
        self.gate.forget_permits(Semaphore::MAX_PERMITS);
    }

    /// Those that wait are answered, and all others.
    pub(crate) fn let_go(&self) {
        self.gate.add_permits(Semaphore::MAX_PERMITS);
    }
}
