//! The latest value of each of several publishers, each written by one.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

/// The latest value of each of several publishers, by name.
#[derive(Debug)]
pub(crate) struct Board<T>(Arc<watch::Sender<BTreeMap<String, T>>>);

impl<T> Clone for Board<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Board<T> {
    pub(super) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(BTreeMap::new())))
    }

    pub(crate) fn borrow(&self) -> watch::Ref<'_, BTreeMap<String, T>> {
        self.0.borrow()
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<BTreeMap<String, T>> {
        self.0.subscribe()
    }

    /// What is published by this name, to be handed to its one writer.
    pub(crate) fn entry(&self, name: &str) -> Entry<T> {
        Entry {
            board: self.clone(),
            name: name.to_owned(),
        }
    }

    /// Its writer has ended.
    pub(crate) fn remove(&self, name: &str) {
        let removed = |all: &mut BTreeMap<String, T>| all.remove(name).is_some();
        self.0.send_if_modified(removed);
    }
}

/// A value of a board, for who writes it.
#[derive(Debug)]
pub(crate) struct Entry<T> {
    board: Board<T>,
    name: String,
}

impl<T> Entry<T> {
    /// Publishes a value.
    pub(crate) fn post(&self, value: T) {
        let all = &self.board.0;
        all.send_modify(|all| _ = all.insert(self.name.clone(), value));
    }

    /// Changes the value that is there; readers are woken when `change` says so.
    pub(crate) fn change(&self, change: impl FnOnce(&mut T) -> bool) {
        let all = &self.board.0;
        all.send_if_modified(|all| all.get_mut(&self.name).is_some_and(change));
    }

    /// Publishes a value where it is another one; `news` gets the one before and this one.
    pub(crate) fn renew(&self, value: T, news: impl FnOnce(Option<&T>, &T))
    where
        T: PartialEq,
    {
        self.board.0.send_if_modified(|all| {
            let before = all.get(&self.name);
            if before == Some(&value) {
                return false;
            }
            news(before, &value);
            all.insert(self.name.clone(), value);
            true
        });
    }
}
