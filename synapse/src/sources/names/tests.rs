//! The map's rules, and the task against a resolver of its own under a paused clock.

use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn names(names: &[&str]) -> Arc<BTreeSet<String>> {
    Arc::new(names.iter().map(|n| (*n).to_owned()).collect())
}

#[test]
fn the_first_address_is_the_smallest_of_the_best_family() {
    let sorted = in_order(["fe80::1", "10.0.0.9", "::1", "10.0.0.2", "10.0.0.9"].map(ip));
    assert_eq!(sorted, ["10.0.0.2", "10.0.0.9", "::1", "fe80::1"].map(ip));
}

#[test]
fn addresses_are_no_names() {
    for host in ["10.0.0.1", "::1", "[::1]", ""] {
        assert!(!is_name(host), "{host}");
    }
    for host in ["db", "db.example", "10.0.0", "10.0.0.1.example"] {
        assert!(is_name(host), "{host}");
    }
}

#[test]
fn only_an_answer_changes_the_map() {
    let mut map = Resolved::new();
    assert!(merge(&mut map, "a", Err("no such name".to_owned())));
    assert_eq!(map["a"].len(), 0, "looked up in vain");
    assert!(!merge(&mut map, "a", Err("no such name".to_owned())));
    assert!(merge(
        &mut map,
        "a",
        Ok(vec![ip("10.0.0.2"), ip("10.0.0.1")])
    ));
    assert!(
        !merge(&mut map, "a", Ok(vec![ip("10.0.0.1"), ip("10.0.0.2")])),
        "another order is the same"
    );
    assert!(!merge(&mut map, "a", Err("no answer".to_owned())));
    assert!(!merge(&mut map, "a", Ok(Vec::new())));
    assert_eq!(map["a"], ["10.0.0.1", "10.0.0.2"].map(ip));
    assert!(merge(&mut map, "a", Ok(vec![ip("10.0.0.3")])));
}

/// `good` has an address, `slow` never answers, `moves` has another address from the 20th second on, others fail.
fn fake() -> Lookup {
    static BEGAN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    let _first: &Instant = BEGAN.get_or_init(Instant::now);
    |name| {
        Box::pin(async move {
            let late = BEGAN
                .get()
                .is_some_and(|began| began.elapsed() > Duration::from_secs(20));
            match name.as_str() {
                "good" => Ok(vec![ip("10.0.0.1")]),
                "slow" => std::future::pending().await,
                "moves" if late => Ok(vec![ip("10.0.0.9")]),
                "moves" => Ok(vec![ip("10.0.0.8")]),
                _ => Err("no such name".to_owned()),
            }
        })
    }
}

#[tokio::test(start_paused = true)]
async fn names_are_resolved_again_and_keep_their_last_address() {
    let (wanted, wanted_rx) = watch::channel(names(&["good", "slow", "bad", "moves", "10.0.0.7"]));
    let seed = Resolved::from([
        ("slow".to_owned(), vec![ip("10.0.0.5")]),
        ("old".to_owned(), vec![ip("10.0.0.6")]),
    ]);
    let (resolved, mut map) = watch::channel(Arc::new(seed));
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    tasks.spawn(resolve(wanted_rx, resolved, fake()));

    let first = map
        .wait_for(|m| m.contains_key("good") && m.contains_key("moves"))
        .await
        .unwrap()
        .clone();
    assert!(
        began.elapsed() < Duration::from_millis(1),
        "a slow name delays no other"
    );
    assert_eq!(first["moves"], [ip("10.0.0.8")]);
    assert_eq!(
        first["slow"],
        [ip("10.0.0.5")],
        "the snapshot's address stays"
    );
    assert!(!first.contains_key("old") && !first.contains_key("10.0.0.7"));

    map.wait_for(|m| m.get("bad").is_some_and(Vec::is_empty))
        .await
        .unwrap();
    map.wait_for(|m| m["moves"] == [ip("10.0.0.9")])
        .await
        .unwrap();
    assert!(
        (29..35).contains(&began.elapsed().as_secs()),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(map.borrow()["slow"], [ip("10.0.0.5")]);

    wanted.send_replace(names(&["moves"]));
    map.wait_for(|m| m.len() == 1).await.unwrap();
    drop(wanted);
    tasks.join_next().await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn slow_names_never_take_all_the_places_for_long() {
    let many: Vec<String> = (0..20).map(|n| format!("slow{n}")).collect();
    let lookup: Lookup = |name| {
        Box::pin(async move {
            if name == "zz-good" {
                Ok(vec![ip("10.0.0.1")])
            } else {
                std::future::pending().await
            }
        })
    };
    let all = many
        .iter()
        .map(String::as_str)
        .chain(["zz-good"])
        .collect::<Vec<_>>();
    let (_wanted, wanted_rx) = watch::channel(names(&all));
    let (resolved, mut map) = watch::channel(Arc::default());
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    tasks.spawn(resolve(wanted_rx, resolved, lookup));
    map.wait_for(|m| m.contains_key("zz-good")).await.unwrap();
    assert!(began.elapsed() <= LIMIT * 3, "{:?}", began.elapsed());
}

#[tokio::test]
async fn the_system_resolves_localhost() {
    let found = system()("localhost".to_owned()).await.unwrap();
    assert!(found.iter().all(IpAddr::is_loopback) && !found.is_empty());
}
