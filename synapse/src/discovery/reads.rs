//! The requests of discovery: a path's children with all their data, or the data of some of them. Thin: what an answer
//! means is [`super::tree`]'s. Every failure is handed up whole; nothing is half-read.
//!
//! Each source lists its own path, although one multi-read could carry the lists of all sources of a client. It would save
//! less than half of the packets: a watch cannot be armed in bulk, so that 100 sources cost 100 + 100 packets each way as it
//! is, and 100 + 1 with it; the bytes stay, and grow by a read of each path's data, because a list in a multi-read comes
//! without the stat that tells an older list from a newer one. And it would tie the sources together: one that takes the
//! connection down would make all of them suspected.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use smartstack_common::zk::Trouble;
use zookeeper_client::{AddWatchMode, Client, Error, MultiReadResult, PersistentWatcher};

use super::Counters;
use super::chunks::ChunkSize;
use super::shared::Shared;
use super::suspects::{Ask, Suspects};
use super::tree::{Known, Parent, Read};

/// What earlier answers and losses say about how to ask. One per source, kept across connections.
#[derive(Debug, Default)]
pub(super) struct Caution {
    pub(super) chunk: ChunkSize,
    pub(super) suspects: Suspects,
}

/// Everything below a path.
#[derive(Debug)]
pub(super) struct Full {
    /// `None`: the path is absent.
    pub(super) parent: Option<Parent>,
    /// Bytes of data on the path itself.
    pub(super) parent_data: usize,
    /// Every listed child.
    pub(super) read: Vec<(String, Read)>,
}

/// Reads the children of one path. Owned by the future that reads: dropping that one drops the client's clone.
#[derive(Clone)]
pub(super) struct Reader {
    /// The client, valid for one connection.
    pub(super) client: Client,
    /// Absolute path, chroot included.
    pub(super) path: Arc<str>,
    /// Shared with later connections: what is in flight counts as lost until its answer is there.
    pub(super) caution: Arc<Mutex<Caution>>,
    /// Shared with all followers of this client.
    pub(super) shared: Arc<Shared>,
    /// Where requests are counted.
    pub(super) counters: Arc<Counters>,
}

impl Reader {
    /// Arms the recursive watch.
    pub(super) async fn watch(&self) -> Result<PersistentWatcher, Error> {
        Counters::add(&self.counters.watches, 1);
        let mode = AddWatchMode::PersistentRecursive;
        let (_place, armed) = (
            self.shared.place().await,
            self.client.watch(&self.path, mode),
        );
        self.attempt(vec![Ask::Watch], armed).await
    }

    /// Lists the children and reads those of which `known` does not say that this is not needed.
    pub(super) async fn full(self, known: Known, sync: bool) -> Result<Full, Error> {
        if sync {
            self.ask(vec![Ask::List], || self.client.sync(&self.path))
                .await?;
        }
        let listed = self.ask(vec![Ask::List], || self.client.get_children(&self.path));
        let (mut names, stat) = match listed.await {
            Ok(listed) => listed,
            Err(Error::NoNode) => {
                return Ok(Full {
                    parent: None,
                    parent_data: 0,
                    read: Vec::new(),
                });
            }
            Err(error) => return Err(error),
        };
        let listed: BTreeSet<&str> = names.iter().map(String::as_str).collect();
        self.caution().suspects.retain(&listed);
        let parent = Parent {
            czxid: stat.czxid,
            pzxid: stat.pzxid,
        };
        let mut unread = Vec::new();
        for (name, mzxid) in &known.refused {
            if let Some(at) = names.iter().position(|n| n == name) {
                let path = format!("{}/{name}", self.path);
                let asks = vec![Ask::Child(name.clone())];
                let now = self.ask(asks, || self.client.check_stat(&path)).await?;
                if now.is_some_and(|now| now.mzxid == *mzxid) {
                    names.swap_remove(at);
                    unread.push((name.clone(), Read::StillRefused));
                }
            }
        }
        let (same, names) = names
            .into_iter()
            .partition::<Vec<String>, _>(|name| known.is_same(name, parent));
        unread.extend(same.into_iter().map(|name| (name, Read::Same)));
        let mut read = self.clone().names(names).await?;
        read.append(&mut unread);
        Ok(Full {
            parent: Some(parent),
            parent_data: usize::try_from(stat.data_length).unwrap_or_default(),
            read,
        })
    }

    /// Reads some children, in chunks; those that were in flight when a connection was lost after the others.
    pub(super) async fn names(self, names: Vec<String>) -> Result<Vec<(String, Read)>, Error> {
        let mut read = Vec::with_capacity(names.len());
        let sorted = self.caution().suspects.sort(names);
        for (name, reason) in sorted.never {
            read.push((name, refused(reason)));
        }
        let mut rest = sorted.plain.as_slice();
        while !rest.is_empty() {
            let before = self.caution().chunk;
            let (chunk, later) = rest.split_at(before.take(rest, self.path.len() + 1));
            rest = later;
            self.caution().chunk.lost(chunk.len());
            let bytes = self.one_chunk(chunk, &mut read).await?;
            let mut after = before;
            after.replied(chunk.len(), bytes);
            self.caution().chunk = after;
        }
        for group in sorted.apart {
            self.one_chunk(&group, &mut read).await?;
        }
        Ok(read)
    }

    /// Returns how many bytes of data came.
    async fn one_chunk(
        &self,
        names: &[String],
        read: &mut Vec<(String, Read)>,
    ) -> Result<usize, Error> {
        let mut asked = Vec::with_capacity(names.len());
        let mut reader = self.client.new_multi_reader();
        for name in names {
            match reader.add_get_data(&format!("{}/{name}", self.path)) {
                Ok(()) => asked.push(name),
                Err(error) => read.push((
                    name.clone(),
                    refused(format!("its name cannot be asked for: {error}")),
                )),
            }
        }
        let asks = names.iter().cloned().map(Ask::Child).collect();
        let results = self.ask(asks, || reader.commit()).await?;
        if results.len() != asked.len() {
            return Err(Error::UnexpectedError(format!(
                "{} answers to {} reads",
                results.len(),
                asked.len()
            )));
        }
        let mut bytes = 0;
        for (name, result) in asked.into_iter().zip(results) {
            let one = match result {
                MultiReadResult::Data { data, stat } => {
                    bytes += data.len();
                    Read::data(data, stat.czxid, stat.mzxid)
                }
                MultiReadResult::Error { err: Error::NoNode } => Read::Gone,
                MultiReadResult::Error { err: Error::NoAuth } => {
                    refused("not allowed to read it (its ACL)".to_owned())
                }
                MultiReadResult::Error { err } => return Err(err),
                other => {
                    return Err(Error::UnexpectedError(format!(
                        "an answer of another kind: {other:?}"
                    )));
                }
            };
            read.push((name.clone(), one));
        }
        Ok(bytes)
    }

    /// Makes a request once there is a place for it.
    async fn ask<T, F: Future<Output = Result<T, Error>>>(
        &self,
        asks: Vec<Ask>,
        request: impl FnOnce() -> F,
    ) -> Result<T, Error> {
        let _place = self.shared.place().await;
        Counters::add(&self.counters.requests, 1);
        // Sent when it is made, not when it is awaited.
        self.attempt(asks, request()).await
    }

    /// Notes what is in flight, and that an answer came. Dropped before that, it is in flight still.
    async fn attempt<T>(
        &self,
        asks: Vec<Ask>,
        request: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        self.caution().suspects.asked(asks);
        let result = request.await;
        let trouble = result.as_ref().err().map(Trouble::from);
        if !matches!(trouble, Some(Trouble::Lost | Trouble::Terminal)) {
            self.caution().suspects.answered();
        }
        result
    }

    fn caution(&self) -> MutexGuard<'_, Caution> {
        // Whoever panicked cannot have left it half-changed in a way that matters: it is only ever asked how to ask.
        self.caution.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Refused without its transactions being known: asked for again by every full read, and every 30 s.
fn refused(reason: String) -> Read {
    Read::Refused {
        reason,
        czxid: 0,
        mzxid: 0,
    }
}
