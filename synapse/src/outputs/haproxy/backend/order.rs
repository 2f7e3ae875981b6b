//! Order of the server lines in a backend.
//!
//! Pure. The default order is shuffled so that the first requests of a thousand hosts do not all go to one server. Each
//! server has a place of its own, a hash of seed, service and name: the order is the same for the same set, however it
//! was discovered, and one server more leaves the others in their order. Called by the reconciler before rendering.

use sha2::{Digest as _, Sha256};

use crate::config::BackendOrder;
use crate::model::server::Identified;

/// Orders the servers of a service. `servers` comes in discovery order, which `no_shuffle` keeps.
pub fn arrange(servers: &mut Vec<Identified>, order: BackendOrder, seed: &str, service: &str) {
    match order {
        BackendOrder::NoShuffle => {}
        BackendOrder::Asc => servers.sort_by(|a, b| a.server.name.cmp(&b.server.name)),
        BackendOrder::Desc => servers.sort_by(|a, b| b.server.name.cmp(&a.server.name)),
        BackendOrder::Shuffle => {
            let key = key(seed, service);
            let place = |server: Identified| (place(key, &server.server.name), server);
            let mut placed: Vec<_> = servers.drain(..).map(place).collect();
            // Two with one place are as good as impossible; by name they have an order all the same.
            placed.sort_unstable_by(|(a, one), (b, other)| {
                let names = || one.server.name.cmp(&other.server.name);
                a.cmp(b).then_with(names)
            });
            servers.extend(placed.into_iter().map(|(_, server)| server));
        }
    }
}

/// Seed and service as a number; the same in every build.
fn key(seed: &str, service: &str) -> u64 {
    let digest = Sha256::new()
        .chain_update(seed)
        .chain_update([0])
        .chain_update(service)
        .finalize();
    u64::from_be_bytes([
        digest[0], digest[1], digest[2], digest[3], digest[4], digest[5], digest[6], digest[7],
    ])
}

/// The place of a name: FNV-1a over the key, finished as in splitmix64 (FNV alone orders similar names alike).
fn place(key: u64, name: &str) -> u64 {
    let hash = name.bytes().fold(key ^ 0xcbf2_9ce4_8422_2325, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
    });
    let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outputs::haproxy::backend::ids::tests::server;
    use proptest::prelude::*;

    fn backend(hosts: impl IntoIterator<Item = u8>) -> Vec<Identified> {
        hosts
            .into_iter()
            .map(|n| Identified {
                server: server(&format!("10.0.0.{n}"), 80).into(),
                id: u32::from(n),
            })
            .collect()
    }

    fn arranged(
        hosts: impl IntoIterator<Item = u8>,
        order: BackendOrder,
        seed: &str,
        service: &str,
    ) -> Vec<u32> {
        let mut servers = backend(hosts);
        arrange(&mut servers, order, seed, service);
        servers.iter().map(|s| s.id).collect()
    }

    #[test]
    fn named_orders() {
        assert_eq!(arranged([3, 1, 2], BackendOrder::Asc, "", ""), [1, 2, 3]);
        assert_eq!(arranged([3, 1, 2], BackendOrder::Desc, "", ""), [3, 2, 1]);
        assert_eq!(
            arranged([3, 1, 2], BackendOrder::NoShuffle, "", ""),
            [3, 1, 2]
        );
    }

    #[test]
    fn shuffle_depends_on_seed_and_service_only() {
        let order = |seed, service| arranged(1..=9, BackendOrder::Shuffle, seed, service);
        assert_eq!(order("42", "users"), order("42", "users"));
        assert_ne!(order("42", "users"), order("43", "users"));
        assert_ne!(order("42", "users"), order("42", "db"));
    }

    #[test]
    fn every_server_is_first_now_and_then() {
        let mut first = [0u32; 10];
        for seed in 0..2000 {
            first[arranged(1..=10, BackendOrder::Shuffle, &seed.to_string(), "s")[0] as usize
                - 1] += 1;
        }
        assert!(first.iter().all(|n| (140..260).contains(n)), "{first:?}");
    }

    proptest! {
        #[test]
        fn one_server_more_leaves_the_others_in_order(hosts in proptest::collection::btree_set(1u8.., 2..30), seed: u64) {
            let all: Vec<u8> = hosts.iter().copied().collect();
            let mut mixed = all.clone();
            fastrand::Rng::with_seed(seed).shuffle(&mut mixed);
            let whole = arranged(mixed, BackendOrder::Shuffle, "s", "x");
            prop_assert_eq!(&whole, &arranged(all.clone(), BackendOrder::Shuffle, "s", "x"));
            let without: Vec<u32> = whole.iter().copied().filter(|id| *id != u32::from(all[0])).collect();
            prop_assert_eq!(without, arranged(all[1..].iter().copied(), BackendOrder::Shuffle, "s", "x"));
        }
    }
}
