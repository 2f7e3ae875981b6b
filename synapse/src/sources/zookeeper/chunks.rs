//! How many names go into one multi-read. Pure.
//!
//! A request above the server's `jute.maxbuffer` (1 MiB by default) kills the connection and all that is in flight on
//! it, and a reply has no limit at all; so chunks begin small and follow the size of the replies.

/// Names of the first chunk.
const START: usize = 64;
/// Most names of a chunk.
const MAX_NAMES: usize = 1000;
/// Most bytes of paths in a chunk.
const MAX_PATH_BYTES: usize = 512 * 1024;
/// Replies below this many bytes allow a larger chunk.
const GROW_BELOW: usize = 1024 * 1024;
/// Replies above this many bytes ask for a smaller one.
const SHRINK_ABOVE: usize = 4 * 1024 * 1024;

/// The size of the next chunk. Kept across connections, so that a chunk that killed one comes back halved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkSize {
    next: usize,
    /// Known to be too many, or the limit of all.
    most: usize,
}

impl Default for ChunkSize {
    fn default() -> Self {
        Self {
            next: START,
            most: MAX_NAMES,
        }
    }
}

impl ChunkSize {
    /// How many of `names` to ask for next (at least one, if there is one); `prefix` is the length of what stands
    /// before each name in its path.
    #[must_use]
    pub fn take(self, names: &[String], prefix: usize) -> usize {
        let mut bytes = 0;
        let fitting = names.iter().take(self.next).take_while(|name| {
            bytes += prefix + name.len();
            bytes <= MAX_PATH_BYTES
        });
        fitting.count().max(1).min(names.len())
    }

    /// A chunk of `names` was answered with `bytes` of data.
    pub fn replied(&mut self, names: usize, bytes: usize) {
        if bytes > SHRINK_ABOVE {
            self.next = (names / 2).max(1);
        } else if bytes < GROW_BELOW && names >= self.next {
            self.next = (self.next * 2).min(self.most);
        }
    }

    /// A chunk of `names` was lost together with the connection. A single name cannot be asked for in smaller parts, so
    /// its loss says nothing about the others.
    pub fn lost(&mut self, names: usize) {
        if names > 1 {
            self.next = (names / 2).min(self.next);
        }
    }

    /// So many took down a connection of their own: that many are not asked for together again, unless one of them
    /// turns out to do that alone.
    pub fn too_many(&mut self, names: usize) {
        if names > 1 {
            self.most = (names / 2).min(self.most);
            self.next = self.next.min(self.most);
        } else {
            self.most = MAX_NAMES;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_with_small_replies_and_halves_with_large_ones() {
        let names: Vec<String> = (0..5000).map(|n| format!("i-{n:010}")).collect();
        let mut size = ChunkSize::default();
        let mut taken = Vec::new();
        for _ in 0..6 {
            let n = size.take(&names, 20);
            taken.push(n);
            size.replied(n, n * 106);
        }
        assert_eq!(taken, [64, 128, 256, 512, 1000, 1000]);
        size.replied(1000, 5_000_000);
        assert_eq!(size.take(&names, 20), 500);
        size.replied(500, 2_000_000);
        assert_eq!(size.take(&names, 20), 500);
        size.lost(500);
        assert_eq!(size.take(&names, 20), 250);
        size.lost(1);
        assert_eq!(size.take(&names, 20), 250);
        for _ in 0..20 {
            size.lost(size.take(&names, 20));
        }
        assert_eq!(size.take(&names, 20), 1);
        assert_eq!(size.take(&[], 20), 0);
    }

    #[test]
    fn what_was_too_many_alone_is_not_asked_for_again() {
        let names: Vec<String> = (0..5000).map(|n| format!("i-{n:010}")).collect();
        let mut size = ChunkSize::default();
        size.too_many(64);
        for _ in 0..5 {
            let n = size.take(&names, 20);
            assert!(n <= 32);
            size.replied(n, n);
        }
        assert_eq!(size.take(&names, 20), 32);
        // It was one of them.
        size.too_many(1);
        size.replied(32, 32);
        assert_eq!(size.take(&names, 20), 64);
    }

    #[test]
    fn paths_are_capped_and_one_always_goes() {
        let long: Vec<String> = (0..64).map(|_| "x".repeat(100 * 1024)).collect();
        assert_eq!(ChunkSize::default().take(&long, 20), 5);
        assert_eq!(ChunkSize::default().take(&["x".repeat(1024 * 1024)], 20), 1);
    }
}
