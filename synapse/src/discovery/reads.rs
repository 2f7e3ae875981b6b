//! The requests of discovery: a path's children with all their data, or the data of some of them. Thin: what an answer
//! means is [`super::tree`]'s. Every failure is handed up whole; nothing is half-read.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use zookeeper_client::{Client, Error, MultiReadResult};

use super::Counters;
use super::chunks::ChunkSize;
use super::tree::{Parent, Read};

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
    /// Shared with later connections: a chunk under way counts as lost until its answer is there.
    pub(super) chunk: Arc<Mutex<ChunkSize>>,
    /// Where requests are counted.
    pub(super) counters: Arc<Counters>,
}

impl Reader {
    /// Lists and reads everything. `refused`: children refused before and the transaction of their last change; the data
    /// of those is only asked for again if it moved.
    pub(super) async fn full(
        self,
        refused: BTreeMap<String, i64>,
        sync: bool,
    ) -> Result<Full, Error> {
        if sync {
            self.count();
            self.client.sync(&self.path).await?;
        }
        self.count();
        let (mut names, stat) = match self.client.get_children(&self.path).await {
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
        let mut still = Vec::new();
        for (name, mzxid) in refused {
            if let Some(at) = names.iter().position(|n| *n == name) {
                self.count();
                let now = self
                    .client
                    .check_stat(&format!("{}/{name}", self.path))
                    .await?;
                if now.is_some_and(|now| now.mzxid == mzxid) {
                    names.swap_remove(at);
                    still.push((name, Read::StillRefused));
                }
            }
        }
        let mut read = self.clone().names(names).await?;
        read.append(&mut still);
        let parent = Some(Parent {
            czxid: stat.czxid,
            pzxid: stat.pzxid,
        });
        Ok(Full {
            parent,
            parent_data: usize::try_from(stat.data_length).unwrap_or_default(),
            read,
        })
    }

    /// Reads some children, in chunks.
    pub(super) async fn names(self, names: Vec<String>) -> Result<Vec<(String, Read)>, Error> {
        let mut read = Vec::with_capacity(names.len());
        let mut rest = names.as_slice();
        while !rest.is_empty() {
            let before = *self.chunk();
            let (chunk, later) = rest.split_at(before.take(rest, self.path.len() + 1));
            rest = later;
            self.chunk().lost(chunk.len());
            let bytes = self.one_chunk(chunk, &mut read).await?;
            let mut after = before;
            after.replied(chunk.len(), bytes);
            *self.chunk() = after;
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
        let request = {
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
            reader.commit()
        };
        self.count();
        let results = request.await?;
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

    fn count(&self) {
        Counters::add(&self.counters.requests, 1);
    }

    fn chunk(&self) -> MutexGuard<'_, ChunkSize> {
        // A plain number: whoever panicked cannot have left it half-changed.
        self.chunk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Refused without its transactions being known: asked for again by every full read.
fn refused(reason: String) -> Read {
    Read::Refused {
        reason,
        czxid: 0,
        mzxid: 0,
    }
}
