//! Log lines on their way out: a bounded queue, and a thread of its own that writes them.
//!
//! Whoever logs only puts a line into the queue, and never waits. A line is dropped and counted when the queue is full
//! (nobody reads the pipe that stderr is) or cannot be written (the reader has gone).
//!
//! `tracing-appender` was looked at: its limit counts lines and not bytes, it does not count lines that cannot be
//! written, and with a full queue it prints at the end of the program, on what may be the very pipe that nobody reads.

#![expect(
    clippy::disallowed_methods,
    reason = "threads of their own have the clock of the system"
)]

use std::collections::VecDeque;
use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;

/// A notice of dropped lines comes at most this often.
const NOTICE: Duration = Duration::from_secs(10);

/// The queue of one target.
#[derive(Debug)]
pub(super) struct Lines {
    /// Bytes that may wait.
    limit: usize,
    waiting: Mutex<Waiting>,
    /// A line was put in.
    came: Condvar,
    /// A line was taken by the target, or given up.
    went: Condvar,
    dropped: Counter,
}

#[derive(Debug)]
struct Waiting {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// A line is being written.
    writing: bool,
    /// When the target last took a line, or the first one since all were written came.
    moved: Instant,
}

impl Lines {
    /// A queue that holds `limit` bytes.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            waiting: Mutex::new(Waiting {
                lines: VecDeque::new(),
                bytes: 0,
                writing: false,
                moved: Instant::now(),
            }),
            came: Condvar::new(),
            went: Condvar::new(),
            dropped: Counter::default(),
        }
    }

    /// Counts the lines that nobody will read.
    pub(super) fn dropped(&self) -> &Counter {
        &self.dropped
    }

    /// Puts a line in, or drops it.
    pub(super) fn push(&self, line: &[u8]) {
        let mut waiting = self.waiting();
        if waiting.bytes + line.len() > self.limit {
            self.dropped.inc();
            return;
        }
        if waiting.is_empty() {
            waiting.moved = Instant::now();
        }
        waiting.bytes += line.len();
        waiting.lines.push_back(line.to_vec());
        self.came.notify_one();
    }

    /// Writes for ever. `notice` is told of dropped lines, once the target takes lines again; it may put one in.
    pub(super) fn write_all(
        &self,
        mut target: impl FnMut(&[u8]) -> io::Result<()>,
        mut notice: impl FnMut(u64),
    ) {
        let (mut told, mut told_at) = (0, None::<Instant>);
        loop {
            let line = self.take();
            let written = target(&line).is_ok();
            let room = self.taken(written);
            let dropped = self.dropped.get();
            let early = told_at.is_some_and(|at| at.elapsed() < NOTICE);
            if written && room && dropped > told && !early {
                notice(dropped - told);
                (told, told_at) = (dropped, Some(Instant::now()));
            }
        }
    }

    /// Returns when everything is written; or when the target has taken nothing for `stuck`, or after `limit`.
    pub(super) fn flush(&self, stuck: Duration, limit: Duration) {
        let begin = Instant::now();
        let mut waiting = self.waiting();
        while !waiting.is_empty() {
            let left = limit.saturating_sub(begin.elapsed());
            let left = left.min(stuck.saturating_sub(waiting.moved.elapsed()));
            if left.is_zero() {
                return;
            }
            (waiting, _) = self
                .went
                .wait_timeout(waiting, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn take(&self) -> Vec<u8> {
        let mut waiting = self.waiting();
        loop {
            if let Some(line) = waiting.lines.pop_front() {
                waiting.bytes -= line.len();
                waiting.writing = true;
                return line;
            }
            waiting = self
                .came
                .wait(waiting)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Whether another line is sure to find room.
    fn taken(&self, written: bool) -> bool {
        let mut waiting = self.waiting();
        waiting.writing = false;
        waiting.moved = Instant::now();
        if !written {
            self.dropped.inc();
        }
        self.went.notify_all();
        waiting.bytes < self.limit / 2
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.lines.is_empty() && !self.writing
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write, pipe};
    use std::os::fd::OwnedFd;
    use std::sync::Arc;
    use std::thread;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);
    const SHORT: Duration = Duration::from_millis(50);

    /// Writes into a pipe, whenever `gate` is not held; the other end.
    fn into_pipe(lines: &Arc<Lines>, gate: &Arc<Mutex<()>>) -> File {
        let (reader, writer) = pipe().unwrap();
        let mut target = File::from(OwnedFd::from(writer));
        let gate = Arc::clone(gate);
        let (lines, again) = (Arc::clone(lines), Arc::clone(lines));
        thread::spawn(move || {
            lines.write_all(
                |line| {
                    drop(gate.lock().unwrap());
                    target.write_all(line)
                },
                |count| again.push(format!("{count} dropped\n").as_bytes()),
            );
        });
        File::from(OwnedFd::from(reader))
    }

    fn line(number: usize) -> Vec<u8> {
        format!("{number:098}\n").into_bytes()
    }

    #[test]
    fn every_line_gets_out_in_order_while_somebody_reads() {
        let lines = Arc::new(Lines::new(1 << 20));
        let mut reader = into_pipe(&lines, &Arc::default());
        let expected: Vec<u8> = (0..5000).flat_map(line).collect();
        let length = expected.len();
        let read = thread::spawn(move || {
            let mut got = vec![0; length];
            reader.read_exact(&mut got).unwrap();
            got
        });
        (0..5000).for_each(|number| lines.push(&line(number)));
        lines.flush(LONG, LONG);
        assert!(lines.waiting().is_empty());
        assert_eq!(read.join().unwrap(), expected);
        assert_eq!(lines.dropped().get(), 0);
    }

    #[test]
    fn a_full_target_costs_lines_and_neither_time_nor_memory() {
        let lines = Arc::new(Lines::new(10_000));
        let gate = Arc::new(Mutex::new(()));
        let full = gate.lock().unwrap();
        let mut reader = into_pipe(&lines, &gate);
        (0..10_000).for_each(|number| lines.push(&line(number)));
        let before = lines.dropped().get();
        // 101 wait, and one may be on its way.
        assert!((9898..=9899).contains(&before), "{before}");
        assert!(lines.waiting().bytes <= 10_000);
        lines.flush(SHORT, LONG);
        lines.flush(LONG, SHORT);
        assert!(!lines.waiting().is_empty(), "it has waited");

        drop(full);
        // Somebody reads after all: what was kept, in order, and that something is missing.
        let mut got = Vec::new();
        let mut piece = [0; 4096];
        let notice = loop {
            let length = reader.read(&mut piece).unwrap();
            got.extend_from_slice(&piece[..length]);
            let text = String::from_utf8_lossy(&got);
            if let Some(notice) = text.lines().find(|line| line.ends_with(" dropped")) {
                break notice.to_owned();
            }
        };
        assert_eq!(notice, format!("{before} dropped"));
        let text = String::from_utf8(got).unwrap();
        let numbers = text.lines().filter_map(|line| line.parse::<usize>().ok());
        assert!(numbers.is_sorted_by(|a, b| a < b));
        lines.flush(LONG, LONG);
        lines.push(&line(1));
        lines.flush(LONG, LONG);
        assert_eq!(lines.dropped().get(), before, "there is room again");
    }

    #[test]
    fn a_reader_that_has_gone_costs_lines_only() {
        let lines = Arc::new(Lines::new(10_000));
        drop(into_pipe(&lines, &Arc::default()));
        for number in 0..100 {
            lines.push(&line(number));
            lines.flush(LONG, LONG);
        }
        assert_eq!(lines.dropped().get(), 100);
        lines.push(&[b'x'; 10_001]);
        assert_eq!(lines.dropped().get(), 101, "longer than the queue");
    }
}
