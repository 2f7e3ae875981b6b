//! The counter behind sequential names, set in a server's snapshot: to count to its end takes two milliards of nodes.
//!
//! A snapshot (3.8, `FileSnap`) holds for each node its path, its data, the number of its ACL and its `StatPersisted`, in
//! jute: texts and bytes with a length of 4 bytes, numbers big-endian. Then comes a seal: the Adler-32 of all before, in 8
//! bytes, and the path `/`; since 3.6 a digest of 20 bytes and another seal.

use std::path::Path;

use super::server::write;

/// Of `StatPersisted`, before the counter: czxid, mzxid, ctime, mtime, version.
const BEFORE: usize = 8 + 8 + 8 + 8 + 4;
/// The checksum, and `/` with its length.
const SEAL: usize = 8 + 5;
/// Zxid, version, digest.
const DIGEST: usize = 8 + 4 + 8;

/// Sets the counter of one node in the newest snapshot of a folder (`version-2`).
///
/// # Panics
/// When there is no snapshot, or the node is not in it.
pub(super) fn set_counter(folder: &Path, path: &str, value: i32) {
    let files = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let zxid = |name: &str| i64::from_str_radix(name.strip_prefix("snapshot.")?, 16).ok();
    let snapshots = files.filter_map(|file| {
        let file = file.ok()?;
        Some((zxid(file.file_name().to_str()?)?, file.path()))
    });
    let (_, newest) = snapshots
        .max()
        .expect("a snapshot, made at a server's start");
    let mut bytes = std::fs::read(&newest).unwrap_or_else(|e| panic!("{}: {e}", newest.display()));
    let length = i32::try_from(path.len()).expect("a short path");
    let named = [&length.to_be_bytes()[..], path.as_bytes()].concat();
    let at = bytes.windows(named.len()).position(|part| part == named);
    let data = at.expect("the node is in the snapshot") + named.len();
    let size = i32::from_be_bytes(bytes[data..data + 4].try_into().expect("4 bytes"));
    // -1 is none.
    let acl = data + 4 + usize::try_from(size).unwrap_or(0);
    let counter = acl + 8 + BEFORE;
    let end = bytes.len() - SEAL;
    let sum = |bytes: &[u8], at: usize| u64::from(adler(&bytes[..at])).to_be_bytes();
    let is_seal = |at: &usize| bytes[*at..*at + 8] == sum(&bytes, *at);
    let seals: Vec<usize> = [end - DIGEST - SEAL, end]
        .into_iter()
        .filter(is_seal)
        .collect();
    assert!(seals.contains(&end), "a snapshot of another form");
    bytes[counter..counter + 4].copy_from_slice(&value.to_be_bytes());
    for seal in seals {
        let sum = sum(&bytes, seal);
        bytes[seal..seal + 8].copy_from_slice(&sum);
    }
    write(&newest, &bytes);
}

fn adler(bytes: &[u8]) -> u32 {
    const MODULUS: u32 = 65521;
    let (a, b) = bytes.iter().fold((1, 0), |(a, b), byte| {
        let a = (a + u32::from(*byte)) % MODULUS;
        (a, (a + b) % MODULUS)
    });
    (b << 16) | a
}
