//! Sorted maps side by side: keys that are asked for in ascending order are walked to, not searched for one by one. With
//! thousands of servers in one service that is several times as fast.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::{BTreeMap, btree_map};
use std::iter::Peekable;

/// A walk through a map.
pub struct Walk<'a, K, V> {
    rest: Peekable<btree_map::Iter<'a, K, V>>,
}

impl<'a, K: Ord, V> Walk<'a, K, V> {
    /// Begins before the first key.
    #[must_use]
    pub fn of(map: &'a BTreeMap<K, V>) -> Self {
        Self {
            rest: map.iter().peekable(),
        }
    }

    /// The value of a key; no key that is asked for may be less than the one before.
    pub fn get<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&'a V>
    where
        K: Borrow<Q>,
    {
        loop {
            let (found, value) = self.rest.peek()?;
            match (*found).borrow().cmp(key) {
                Ordering::Less => _ = self.rest.next(),
                Ordering::Equal => return Some(value),
                Ordering::Greater => return None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_walk_finds_what_a_search_finds(map in proptest::collection::btree_map(0u8..40, any::<u8>(), 0..30), mut asked in proptest::collection::vec(0u8..45, 0..60)) {
            asked.sort_unstable();
            let mut walk = Walk::of(&map);
            for key in asked {
                prop_assert_eq!(walk.get(&key), map.get(&key));
            }
        }
    }
}
