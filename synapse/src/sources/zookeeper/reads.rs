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
use std::time::Duration;

use smartstack_common::zk::{Armed, CallError, Doubt, Suspicion, Trouble, arm, call};
use zookeeper_client::{AddWatchMode, Client, Error, MultiReadResult, PersistentWatcher, Stat};

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
    /// It was read after a `sync`: nothing newer can be known.
    pub(super) synced: bool,
    /// Bytes of data on the path itself, and its keys where it is a map.
    pub(super) parent_data: usize,
    pub(super) parent_config: Arc<[String]>,
    /// Every listed child.
    pub(super) read: Vec<(String, Read)>,
    /// With a server that has no recursive watches: ends when the list is another one.
    pub(super) watcher: Option<Armed>,
}

/// Reads of single children in flight, where there are no multi-reads.
const SINGLE_READS: usize = 64;

/// Reads the children of one path. Owned by the future that reads: dropping that one drops the client's clone.
#[derive(Clone)]
pub(super) struct Reader {
    /// The client, valid for one connection.
    pub(super) client: Client,
    /// Where to tell of a connection that does not answer.
    pub(super) doubt: Doubt,
    /// How long to wait for an answer.
    pub(super) limit: Duration,
    /// Absolute path, chroot included.
    pub(super) path: Arc<str>,
    /// Shared with later connections: what is in flight counts as lost until its answer is there.
    pub(super) caution: Arc<Mutex<Caution>>,
    /// Shared with all followers of this client.
    pub(super) shared: Arc<Shared>,
    /// Where requests are counted.
    pub(super) counters: Arc<Counters>,
    /// The servers know neither recursive watches nor multi-reads (before 3.6).
    pub(super) old: bool,
}

impl Reader {
    /// Arms the recursive watch. `None`: the servers do not know what that is.
    pub(super) async fn watch(&self) -> Result<Option<PersistentWatcher>, Error> {
        let _place = self.shared.place().await;
        if self.shared.is_old() {
            // Found out while this waited for its place.
            return Ok(None);
        }
        Counters::add(&self.counters.watches, 1);
        let mode = AddWatchMode::PersistentRecursive;
        let armed = self.client.watch(&self.path, mode);
        match self.attempt(vec![Ask::Watch], armed).await {
            Err(Error::Unimplemented) => {
                // Before the place is another's.
                self.shared.found_old(&self.path);
                Ok(None)
            }
            armed => armed.map(Some),
        }
    }

    /// Lists the children and reads those of which `known` does not say that this is not needed.
    pub(super) async fn full(self, known: Known, sync: bool) -> Result<Full, Error> {
        if sync {
            self.ask(vec![Ask::List], || self.client.sync(&self.path))
                .await?;
        }
        let (mut names, stat, watcher) = match self.list().await? {
            (Some((names, stat)), watcher) => (names, stat, watcher),
            (None, watcher) => {
                return Ok(Full {
                    parent: None,
                    synced: sync,
                    parent_data: 0,
                    parent_config: Arc::default(),
                    read: Vec::new(),
                    watcher,
                });
            }
        };
        let listed: BTreeSet<&str> = names.iter().map(String::as_str).collect();
        self.caution().suspects.retain(&listed);
        let parent = Parent {
            czxid: stat.czxid,
            ctime: stat.ctime,
            pzxid: stat.pzxid,
        };
        let mut unread = Vec::new();
        for (name, mzxid) in known.refused(parent) {
            if let Some(at) = names.iter().position(|n| n == name) {
                let path = format!("{}/{name}", self.path);
                let asks = vec![Ask::Child(name.clone())];
                let now = self.ask(asks, || self.client.check_stat(&path)).await?;
                if now.is_some_and(|now| now.mzxid == mzxid) {
                    names.swap_remove(at);
                    unread.push((name.clone(), Read::StillRefused));
                }
            }
        }
        let (mut same, mut names) = names
            .into_iter()
            .partition::<Vec<String>, _>(|name| known.is_same(name, parent));
        let witness = known.witness(&same).map(|at| same.swap_remove(at));
        names.extend(witness.clone());
        let parent_config = match stat.data_length {
            0 => Arc::default(),
            _ => self.parent_config().await?,
        };
        let mut read = self.clone().names(names).await?;
        let proves = |witness: &String| {
            let answer = read.iter().find(|(name, _)| name == witness);
            answer.is_some_and(|(name, read)| known.is_witnessed(name, read))
        };
        if witness.as_ref().is_none_or(proves) {
            unread.extend(same.into_iter().map(|name| (name, Read::Same)));
        } else {
            read.append(&mut self.clone().names(same).await?);
        }
        read.append(&mut unread);
        Ok(Full {
            parent: Some(parent),
            synced: sync,
            parent_data: usize::try_from(stat.data_length).unwrap_or_default(),
            parent_config,
            read,
            watcher,
        })
    }

    /// The keys of the path's own data, where it is a map; none where it is anything else or has gone.
    async fn parent_config(&self) -> Result<Arc<[String]>, Error> {
        let read = self.ask(vec![Ask::List], || self.client.get_data(&self.path));
        let data = match read.await {
            Ok((data, _)) => data,
            Err(Error::NoNode) => return Ok(Arc::default()),
            Err(error) => return Err(error),
        };
        let map: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(&data).unwrap_or_default();
        // Whoever may write there decides what the log says: names of generators are short words.
        let named = |key: &String| key.chars().filter(|c| !c.is_control()).take(40).collect();
        Ok(map.keys().take(10).map(named).collect())
    }

    /// The children, if there is such a path; with old servers watched, once, whether it is there or not.
    async fn list(&self) -> Result<(Option<(Vec<String>, Stat)>, Option<Armed>), Error> {
        let asks = || vec![Ask::List];
        if !self.old {
            let listed = self.ask(asks(), || self.client.get_children(&self.path));
            return match listed.await {
                Ok(listed) => Ok((Some(listed), None)),
                Err(Error::NoNode) => Ok((None, None)),
                Err(error) => Err(error),
            };
        }
        loop {
            let (client, path) = (self.client.clone(), Arc::clone(&self.path));
            let listed = self.ask(asks(), || {
                arm(async move {
                    let (names, stat, watcher) = client.get_and_watch_children(&path).await?;
                    Ok((names, stat, Armed::new(watcher)))
                })
            });
            match listed.await {
                Ok((names, stat, watcher)) => return Ok((Some((names, stat)), Some(watcher))),
                Err(Error::NoNode) => {}
                Err(error) => return Err(error),
            }
            let (client, path) = (self.client.clone(), Arc::clone(&self.path));
            let stat = self.ask(asks(), || {
                arm(async move {
                    let (stat, watcher) = client.check_and_watch_stat(&path).await?;
                    Ok((stat, Armed::new(watcher)))
                })
            });
            // Where there is a stat, the path came into being in between.
            if let (None, watcher) = stat.await? {
                return Ok((None, Some(watcher)));
            }
        }
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
        if self.old || names.len() == 1 {
            return self.one_by_one(names, read).await;
        }
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

    /// Without multi-reads; or one name, as most changes are: the plain read is 40 bytes less on the wire than a
    /// multi-read of one.
    async fn one_by_one(
        &self,
        names: &[String],
        read: &mut Vec<(String, Read)>,
    ) -> Result<usize, Error> {
        let mut bytes = 0;
        for names in names.chunks(SINGLE_READS) {
            let asks = names.iter().cloned().map(Ask::Child).collect();
            let paths = names.iter().map(|name| format!("{}/{name}", self.path));
            let paths: Vec<String> = paths.collect();
            let all = || {
                // Each is sent when it is made.
                let sent: Vec<_> = paths.iter().map(|p| self.client.get_data(p)).collect();
                async move {
                    let mut all = Vec::with_capacity(sent.len());
                    for answer in sent {
                        all.push(one_answer(answer.await)?);
                    }
                    Ok(all)
                }
            };
            let answers = self.ask(asks, all).await?;
            Counters::add(&self.counters.requests, names.len() - 1);
            for (name, (size, one)) in names.iter().zip(answers) {
                bytes += size;
                read.push((name.clone(), one));
            }
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
        let result = match call(self.limit, request).await {
            Ok(answer) => Ok(answer),
            Err(CallError::Failed(error)) => Err(error),
            Err(CallError::TimedOut(_)) => {
                self.doubt.raise(Suspicion::NoAnswer);
                Err(Error::Timeout)
            }
        };
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

/// What the answer to a single read means; and the bytes of data in it.
fn one_answer(answer: Result<(Vec<u8>, Stat), Error>) -> Result<(usize, Read), Error> {
    match answer {
        Ok((data, stat)) => Ok((data.len(), Read::data(data, stat.czxid, stat.mzxid))),
        Err(Error::NoNode) => Ok((0, Read::Gone)),
        Err(Error::NoAuth) => Ok((0, refused("not allowed to read it (its ACL)".to_owned()))),
        Err(Error::BadArguments(error)) => {
            let reason = format!("its name cannot be asked for: {error}");
            Ok((0, refused(reason)))
        }
        Err(error) => Err(error),
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
