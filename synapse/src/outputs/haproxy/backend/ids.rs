//! haproxy's server ids: the same for a server on every host, and never changed while it is known.
//!
//! Pure. Hash balancing places servers by their id, so that an id from a hash of the address maps a key to the same
//! server everywhere (Ruby's lowest free number differs from host to host). Called by the reconciler per backend.

use std::borrow::Borrow;
use std::collections::{BTreeMap, HashSet};

use sha2::{Digest as _, Sha256};

use crate::model::server::Server;

/// Highest id haproxy can hold.
const HAPROXY_MAX: u32 = i32::MAX as u32;

/// Ids of servers of a backend.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Allocation {
    /// One for each server, in the order given; unique.
    pub ids: Vec<u32>,
    /// Explicit ids that could not be given, and exhaustion: NAME and why.
    pub notes: Vec<(String, String)>,
}

/// Gives every server an id: the one that it has in the live table, else the one it is remembered with, else its explicit
/// one, else a hash of `host:port` into 1..=`max`, the next free number if that is taken. No id of the live table is given to
/// anybody but its own server there, whoever is remembered with it: that one would have to be renumbered by a reload. The
/// order of `servers` does not matter to which they get.
///
/// `live` tells a server's id in the live table, `reserved` are all ids in it, `used` those of this backend's servers that are
/// not among `servers`. With more servers than ids the numbers go on above `max`.
#[must_use]
pub fn allocate(
    live: impl Fn(&str) -> Option<u32>,
    reserved: &HashSet<u32>,
    remembered: &BTreeMap<String, u32>,
    servers: &[impl Borrow<Server>],
    mut used: HashSet<u32>,
    max: u32,
) -> Allocation {
    let mut out = Allocation {
        ids: vec![0; servers.len()],
        notes: Vec::new(),
    };
    let mut by_name: Vec<(usize, &Server)> =
        servers.iter().map(Borrow::borrow).enumerate().collect();
    by_name.sort_by(|(_, a), (_, b)| a.name.cmp(&b.name));
    let of_nobody = |id: &u32| !reserved.contains(id);
    let known = |name: &str| {
        let remembered = || remembered.get(name).copied().filter(of_nobody);
        live(name).or_else(remembered)
    };

    let mut new = Vec::new();
    for (index, server) in by_name {
        match known(&server.name) {
            Some(id) if (1..=HAPROXY_MAX).contains(&id) && used.insert(id) => out.ids[index] = id,
            _ => new.push((index, server)),
        }
    }
    new.retain(|(index, server)| {
        let Some(id) = server.explicit_id else {
            return true;
        };
        if (1..=HAPROXY_MAX).contains(&id) && of_nobody(&id) && used.insert(id) {
            out.ids[*index] = id;
            return false;
        }
        out.notes.push((
            server.name.clone(),
            format!("id {id} is taken, another one is given"),
        ));
        true
    });
    for (index, server) in new {
        let taken = |id: u32| used.contains(&id) || !of_nobody(&id);
        let id = free_id(&format!("{}:{}", server.host, server.port), max, taken);
        if id > max {
            out.notes.push((
                server.name.clone(),
                format!("no id of 1..{max} is free (`max_server_id`), {id} is given"),
            ));
        }
        used.insert(id);
        out.ids[index] = id;
    }
    out
}

/// The first free number from the hash on, round 1..=`max`, then above it.
fn free_id(address: &str, max: u32, taken: impl Fn(u32) -> bool) -> u32 {
    let max = max.clamp(1, HAPROXY_MAX);
    let digest = Sha256::digest(address.as_bytes());
    let hash = u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]);
    let start = hash % max + 1;
    (start..=max)
        .chain(1..start)
        .chain(max + 1..=HAPROXY_MAX)
        .find(|id| !taken(*id))
        .expect("fewer than 2^31 servers fit into memory")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// A server named by its address; a host that is a name stands for 192.0.2.1.
    pub(crate) fn server(host: &str, port: u16) -> Server {
        Server {
            name: format!("{host}:{port}"),
            host: host.to_owned(),
            address: host.parse().unwrap_or_else(|_| [192, 0, 2, 1].into()),
            port,
            weight: None,
            options: None,
            explicit_id: None,
            znode: None,
            sequence: None,
            disabled: false,
        }
    }

    /// Ids by name, and the notes.
    fn ids(
        live: &[(&str, u32)],
        remembered: &[(&str, u32)],
        servers: &[Server],
        max: u32,
    ) -> (BTreeMap<String, u32>, Vec<(String, String)>) {
        let map = |ids: &[(&str, u32)]| -> BTreeMap<String, u32> {
            ids.iter()
                .map(|(name, id)| ((*name).to_owned(), *id))
                .collect()
        };
        let (live, remembered) = (map(live), map(remembered));
        let reserved = live.values().copied().collect();
        let id = |name: &str| live.get(name).copied();
        let out = allocate(id, &reserved, &remembered, servers, HashSet::new(), max);
        (by_name(servers, &out), out.notes)
    }

    fn by_name(servers: &[Server], out: &Allocation) -> BTreeMap<String, u32> {
        let names = servers.iter().map(|s| s.name.clone());
        names.zip(out.ids.iter().copied()).collect()
    }

    /// The numbers are part of the contract: every build and every host must give them.
    #[test]
    fn hashes_are_stable() {
        let servers = [
            server("10.0.0.1", 9001),
            server("10.0.0.2", 9001),
            server("db.example", 5432),
        ];
        let (out, _) = ids(&[], &[], &servers, 65535);
        let numbers: Vec<u32> = servers.iter().map(|s| out[&s.name]).collect();
        assert_eq!(numbers, [57576, 25280, 64516]);
    }

    #[test]
    fn known_then_explicit_then_hash() {
        let explicit = |host, id| Server {
            explicit_id: Some(id),
            ..server(host, 80)
        };
        let servers = [
            explicit("10.0.0.1", 5),
            explicit("10.0.0.2", 5),
            explicit("10.0.0.3", 7),
            explicit("10.0.0.4", 9),
        ];
        let live = [("gone:80", 9)];
        let (out, notes) = ids(&live, &[("10.0.0.3:80", 42)], &servers, 65535);
        assert_eq!((out["10.0.0.1:80"], out["10.0.0.3:80"]), (5, 42));
        assert!(
            ![5, 7, 9, 42].contains(&out["10.0.0.2:80"]),
            "a duplicate is renumbered"
        );
        assert_ne!(out["10.0.0.4:80"], 9, "reserved by another");
        assert_eq!(notes.len(), 2);
    }

    /// Somebody loads a file in which `b` has the id that `a` is remembered with, and `a` is not at all.
    #[test]
    fn an_id_of_the_live_table_is_its_own_servers_whoever_is_remembered_with_it() {
        let servers = ["10.0.0.1", "10.0.0.2", "10.0.0.3"].map(|host| server(host, 80));
        let live = [("10.0.0.2:80", 3), ("gone:80", 4)];
        let remembered = [("10.0.0.1:80", 3), ("10.0.0.2:80", 1), ("10.0.0.3:80", 4)];
        let (out, notes) = ids(&live, &remembered, &servers, 5);
        assert_eq!(out["10.0.0.2:80"], 3, "{out:?}");
        for name in ["10.0.0.1:80", "10.0.0.3:80"] {
            assert!([1, 2, 5].contains(&out[name]), "{out:?}");
        }
        assert_eq!(notes, []);
        // Whatever the names' order.
        let live = [("10.0.0.1:80", 3)];
        let (out, _) = ids(&live, &[("10.0.0.2:80", 3)], &servers[..2], 5);
        assert_eq!(out["10.0.0.1:80"], 3, "{out:?}");
        assert_ne!(out["10.0.0.2:80"], 3, "{out:?}");
    }

    #[test]
    fn exhaustion_goes_on_above() {
        let servers: Vec<Server> = (1..=5)
            .map(|n| server(&format!("10.0.0.{n}"), 80))
            .collect();
        let (out, notes) = ids(&[], &[], &servers, 3);
        assert_eq!(
            out.values().copied().collect::<BTreeSet<_>>(),
            (1..=5).collect()
        );
        assert_eq!(notes.len(), 2);
    }

    proptest! {
        #[test]
        fn unique_total_stable_and_independent_of_order(
            hosts in proptest::collection::btree_set(1u8..60, 0..40), remembered in proptest::collection::btree_map(1u8..60, 0u32..70, 0..20),
            explicit in proptest::collection::btree_map(1u8..60, 0u32..70, 0..10),
            live in proptest::collection::btree_map(1u32..70, 1u8..90, 0..30), max in 1u32..80, seed: u64,
        ) {
            let name = |n: &u8| format!("10.0.0.{n}:80");
            let remembered: BTreeMap<String, u32> = remembered.iter().map(|(n, id)| (name(n), *id)).collect();
            let live: BTreeMap<String, u32> = live.iter().map(|(id, n)| (name(n), *id)).collect();
            let of = |map: &BTreeMap<String, u32>, name: &str| map.get(name).copied();
            let mut servers: Vec<Server> = hosts.iter()
                .map(|n| Server { explicit_id: explicit.get(n).copied(), ..server(&format!("10.0.0.{n}"), 80) }).collect();
            let reserved: HashSet<u32> = live.values().copied().collect();
            let given = |servers: &[Server]| allocate(|name| of(&live, name), &reserved, &remembered, servers, HashSet::new(), max);
            let first = given(&servers);
            prop_assert_eq!(first.ids.len(), servers.len());
            prop_assert_eq!(first.ids.iter().collect::<BTreeSet<_>>().len(), servers.len());
            prop_assert!(first.ids.iter().all(|id| *id > 0));
            let first = by_name(&servers, &first);
            for (name, id) in &first {
                let own = of(&live, name);
                prop_assert!(own.map_or(!reserved.contains(id), |own| own == *id), "{} has {}, live {:?}", name, id, live);
            }
            let mut mixed = fastrand::Rng::with_seed(seed);
            mixed.shuffle(&mut servers);
            prop_assert_eq!(&by_name(&servers, &given(&servers)), &first);
            // What was given stays when it has been loaded, whatever else is in the live table.
            let again = allocate(|name| of(&first, name), &(1..70).collect(), &remembered, &servers, HashSet::new(), max);
            prop_assert_eq!(&by_name(&servers, &again), &first);
            // And when it is remembered.
            let again = allocate(|name| of(&live, name), &reserved, &first, &servers, HashSet::new(), max);
            prop_assert_eq!(&by_name(&servers, &again), &first);
            // Those that come later get none of theirs.
            let later = mixed.usize(0..=servers.len());
            let used: HashSet<u32> = servers[later..].iter().map(|s| first[&s.name]).collect();
            let late = allocate(|name| of(&live, name), &reserved, &remembered, &servers[..later], used.clone(), max);
            prop_assert!(late.ids.iter().all(|id| !used.contains(id)));
        }
    }
}
