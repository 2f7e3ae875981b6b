//! The rules one by one, then a model of server, wire and client in which they must converge whatever the interleaving.
//!
//! Over 600 lines because every rule of the copy has its test here, beside the model that all of them are for.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

const PATH: &str = "/services/a";

fn child(data: &str, czxid: i64, mzxid: i64) -> Read {
    Read::data(data.as_bytes().to_vec(), czxid, mzxid)
}

fn named(reads: &[(&str, Read)]) -> Vec<(String, Read)> {
    reads
        .iter()
        .map(|(name, read)| ((*name).to_owned(), read.clone()))
        .collect()
}

fn at(pzxid: i64) -> Option<Parent> {
    Some(Parent {
        czxid: 1,
        ctime: 0,
        pzxid,
    })
}

/// A tree with children `a` and `b`, where data beginning with `!` is invalid.
fn tree() -> Tree {
    let valid: Validity = Arc::new(|_, data| !data.starts_with(b"!"));
    let mut tree = Tree::new(PATH, valid, Arc::default());
    tree.begin_full(Trust::Nothing);
    let read = named(&[("a", child("1", 2, 2)), ("b", child("1", 3, 3))]);
    assert_eq!(tree.replace(at(3), read).unwrap(), ["a", "b"]);
    tree
}

fn names(tree: &Tree) -> Vec<&str> {
    tree.children().keys().map(String::as_str).collect()
}

fn data(tree: &Tree, name: &str) -> String {
    String::from_utf8_lossy(&tree.children()[name].data).into_owned()
}

fn events(tree: &mut Tree, events: &[(Event, &str)]) -> bool {
    for (event, path) in events {
        tree.note(*event, path);
    }
    tree.absorb()
}

#[test]
fn a_node_proven_the_same_is_not_read_with_the_list_but_later() {
    let valid: Validity = Arc::new(|_, _| true);
    let mut tree = Tree::new(PATH, valid, Arc::default());
    tree.begin_full(Trust::Nothing);
    let (sequential, other) = ("s_0000000001", "s_0000000002");
    let all = [
        ("fixed", child("1", 2, 2)),
        (sequential, child("1", 3, 3)),
        (other, child("1", 4, 4)),
    ];
    tree.replace(at(4), named(&all)).unwrap();
    // Read or not: the connection went before it was known.
    events(&mut tree, &[(Event::Changed, "/services/a/s_0000000002")]);
    tree.restart();
    let known = tree.begin_full(Trust::Nodes);
    let parent = |czxid, pzxid| Parent {
        czxid,
        ctime: 0,
        pzxid,
    };
    let same = |name, parent| known.is_same(name, parent);
    assert!(same("fixed", parent(1, 4)) && same(sequential, parent(1, 4)));
    assert!(!same("fixed", parent(1, 5)) && same(sequential, parent(1, 5)));
    // An ensemble that was wiped has come to the same transactions by the same steps.
    let wiped = Parent {
        ctime: 1,
        ..parent(1, 4)
    };
    assert!(!same(sequential, wiped) && !same("fixed", wiped));
    assert!(!same(sequential, parent(2, 4)) && !same("new_0000000003", parent(1, 4)));
    assert!(!same(other, parent(1, 4)));
    assert!(tree.begin_full(Trust::Nothing).same.is_none());

    tree.begin_full(Trust::Nodes);
    let read = named(&[(sequential, Read::Same), (other, child("2", 4, 6))]);
    assert_eq!(tree.replace(at(5), read).unwrap(), ["fixed", other]);
    assert_eq!(names(&tree), [sequential, other]);
    assert!(tree.is_unverified() && !tree.is_settled());
    tree.begin_full(Trust::Nothing);
    let read = named(&[(sequential, child("2", 3, 7)), (other, child("2", 4, 6))]);
    assert_eq!(tree.replace(at(5), read).unwrap(), [sequential]);
    assert!(!tree.is_unverified() && tree.is_settled());
}

/// What replaces it may have come while nobody watched.
#[test]
fn after_a_reconnection_an_unannounced_deletion_waits_for_the_list() {
    let mut tree = tree();
    tree.restart();
    let swapped = [(Event::Deleted, "/services/a/a_0000000001")];
    assert!(!events(&mut tree, &swapped));
    let announced = [
        (Event::Changed, "/services/a/b"),
        (Event::Deleted, "/services/a/b"),
    ];
    assert!(events(&mut tree, &announced));
    assert_eq!(names(&tree), ["a"]);
    events(&mut tree, &[(Event::Deleted, "/services/a/a")]);
    for _ in 0..20 {
        tree.reread(vec!["a".to_owned()]);
        tree.begin_read();
        tree.apply(Vec::new());
        assert!(!events(&mut tree, &[]));
    }
    assert_eq!(names(&tree), ["a"]);
    tree.begin_full(Trust::Nodes);
    tree.replace(at(9), named(&[("c", child("1", 8, 8))]))
        .unwrap();
    assert!(names(&tree) == ["c"] && tree.is_settled());
}

#[test]
fn an_announced_deletion_needs_no_read() {
    let mut tree = tree();
    let announced = [
        (Event::Changed, "/services/a/a"),
        (Event::Deleted, "/services/a/a"),
    ];
    assert!(events(&mut tree, &announced));
    assert_eq!(names(&tree), ["b"]);
    assert!(tree.is_settled());
}

#[test]
fn created_and_changed_children_are_read() {
    let mut tree = tree();
    let changed = events(
        &mut tree,
        &[
            (Event::Created, "/services/a/c"),
            (Event::Changed, "/services/a/a"),
        ],
    );
    assert!(!changed && tree.is_dirty() && !tree.is_settled());
    assert_eq!(tree.begin_read(), ["a", "c"]);
    assert!(tree.apply(named(&[("a", child("2", 2, 5)), ("c", child("1", 4, 4))])));
    assert_eq!(names(&tree), ["a", "b", "c"]);
    assert_eq!(data(&tree, "a"), "2");
    assert!(tree.is_settled());
}

#[test]
fn a_child_that_is_gone_when_read_is_removed() {
    let mut tree = tree();
    events(&mut tree, &[(Event::Changed, "/services/a/a")]);
    tree.begin_read();
    assert!(tree.apply(named(&[("a", Read::Gone)])));
    assert_eq!(names(&tree), ["b"]);
}

#[test]
fn delete_and_create_in_one_batch_never_shows_the_gap() {
    let mut tree = tree();
    let swap = [
        (Event::Deleted, "/services/a/a"),
        (Event::Created, "/services/a/a"),
    ];
    assert!(!events(&mut tree, &swap));
    assert_eq!(names(&tree), ["a", "b"]);
    assert_eq!(tree.begin_read(), ["a"]);
    assert!(tree.apply(named(&[("a", child("1", 9, 9))])));
    assert_eq!(tree.children()["a"].czxid, 9);
}

#[test]
fn an_unannounced_deletion_of_a_fixed_name_is_read_before_it_counts() {
    let (a, s) = ("/services/a/a", "/services/a/s_0000000007");
    for (noted, read) in [
        (vec![(Event::Deleted, a)], true),
        (vec![(Event::Changed, a), (Event::Deleted, a)], false),
        (vec![(Event::Deleted, "/services/a/unknown")], false),
        (vec![(Event::Deleted, s)], false),
        (vec![(Event::Deleted, a), (Event::Deleted, PATH)], false),
    ] {
        let mut tree = tree();
        events(&mut tree, &[(Event::Created, s)]);
        tree.begin_read();
        tree.apply(named(&[("s_0000000007", child("1", 7, 7))]));
        events(&mut tree, &noted);
        assert_eq!(tree.is_dirty(), read, "{noted:?}");
        assert_eq!(
            names(&tree).contains(&"a"),
            read || noted[0].1 != a,
            "{noted:?}"
        );
    }
    let mut tree = tree();
    events(&mut tree, &[(Event::Deleted, a)]);
    assert_eq!(tree.begin_read(), ["a"]);
    assert!(tree.apply(named(&[("a", Read::Gone)])));
    assert_eq!(names(&tree), ["b"]);
}

fn removed(tree: &mut Tree) -> Vec<(String, bool)> {
    let removed = tree.take_removed().into_iter();
    removed.map(|r| (r.name, r.announced)).collect()
}

#[test]
fn a_removal_says_whether_it_was_announced() {
    let (a, b) = ("/services/a/a", "/services/a/b");
    let said = |name: &str, announced| vec![(name.to_owned(), announced)];

    let mut tree = tree();
    events(&mut tree, &[(Event::Changed, a), (Event::Deleted, a)]);
    assert_eq!(removed(&mut tree), said("a", true));
    assert!(removed(&mut tree).is_empty(), "told once");
    events(&mut tree, &[(Event::Deleted, b)]);
    tree.begin_read();
    tree.apply(named(&[("b", Read::Gone)]));
    assert_eq!(removed(&mut tree), said("b", false));

    // The pair torn apart by the end of a batch: its first half is dirty, or being read.
    for reading in [false, true] {
        let mut tree = self::tree();
        events(&mut tree, &[(Event::Changed, a)]);
        if reading {
            tree.begin_read();
        }
        events(&mut tree, &[(Event::Deleted, a)]);
        assert_eq!(removed(&mut tree), said("a", true), "reading: {reading}");
    }
    // A change that was read long before the deletion announces nothing.
    let mut tree = self::tree();
    events(&mut tree, &[(Event::Changed, a)]);
    tree.begin_read();
    tree.apply(named(&[("a", child("2", 2, 5))]));
    events(&mut tree, &[(Event::Deleted, a)]);
    tree.begin_read();
    tree.apply(named(&[("a", Read::Gone)]));
    assert_eq!(removed(&mut tree), said("a", false));

    // A full read that is answered between noting and absorbing.
    let mut tree = self::tree();
    tree.begin_full(Trust::Nothing);
    tree.note(Event::Changed, a);
    tree.note(Event::Deleted, a);
    tree.replace(at(9), named(&[("b", child("1", 3, 3))]))
        .unwrap();
    tree.absorb();
    assert_eq!(removed(&mut tree), said("a", true));
}

/// A tree with the sequential children `s_0000000001` and `s_0000000002`.
fn sequential() -> Tree {
    let mut tree = Tree::new(PATH, Arc::new(|_, _| true), Arc::default());
    tree.begin_full(Trust::Nothing);
    let read = named(&[
        ("s_0000000001", child("1", 2, 2)),
        ("s_0000000002", child("2", 3, 3)),
    ]);
    tree.replace(at(3), read).unwrap();
    tree
}

#[test]
fn a_session_swap_is_never_published_without_both_halves() {
    let (old, new) = (
        "/services/a/s_0000000001",
        ("/services/a/s_0000000003", "s_0000000003"),
    );
    let both = ["s_0000000001", "s_0000000002"];
    // In one batch.
    let mut tree = sequential();
    assert!(!events(
        &mut tree,
        &[(Event::Created, new.0), (Event::Deleted, old)]
    ));
    assert!(names(&tree) == both && !tree.is_settled());
    assert_eq!(tree.begin_read(), [new.1]);
    assert!(tree.apply(named(&[(new.1, child("1", 9, 9))])));
    assert_eq!(names(&tree), ["s_0000000002", new.1]);
    assert!(tree.is_settled());

    // The deletion after the read began, and after another read began.
    let mut tree = sequential();
    events(&mut tree, &[(Event::Created, "/services/a/x_0000000004")]);
    tree.begin_read();
    assert!(!events(
        &mut tree,
        &[(Event::Created, new.0), (Event::Deleted, old)]
    ));
    assert!(tree.apply(named(&[("x_0000000004", child("4", 8, 8))])));
    assert!(names(&tree).contains(&both[0]), "its own read is to come");
    assert_eq!(tree.begin_read(), [new.1]);
    tree.apply(named(&[(new.1, child("1", 9, 9))]));
    assert_eq!(names(&tree), ["s_0000000002", new.1, "x_0000000004"]);

    // A full read is outstanding: it brings both.
    let mut tree = sequential();
    tree.begin_full(Trust::Nothing);
    assert!(!events(&mut tree, &[(Event::Deleted, old)]));
    let read = named(&[
        ("s_0000000002", child("2", 3, 3)),
        (new.1, child("1", 9, 9)),
    ]);
    let differed = tree.replace(at(10), read).unwrap();
    assert_eq!(differed, [new.1], "the deletion was told, the creation not");
    assert!(names(&tree) == ["s_0000000002", new.1] && tree.is_settled());
}

#[test]
fn deletions_wait_for_nothing_but_a_read_and_announced_ones_not_even_for_that() {
    let old = "/services/a/s_0000000001";
    let mut tree = sequential();
    assert!(events(&mut tree, &[(Event::Deleted, old)]));
    let mut tree = sequential();
    let batch = [
        (Event::Created, "/services/a/s_0000000003"),
        (Event::Changed, old),
        (Event::Deleted, old),
    ];
    assert!(events(&mut tree, &batch));
    assert_eq!(names(&tree), ["s_0000000002"]);
    // A connection that goes takes the waiting with it: the full read settles it.
    let mut tree = sequential();
    tree.begin_full(Trust::Nothing);
    events(&mut tree, &[(Event::Deleted, old)]);
    tree.restart();
    assert!(names(&tree).contains(&"s_0000000001"));
    tree.begin_full(Trust::Nothing);
    tree.replace(at(9), named(&[])).unwrap();
    assert!(tree.children().is_empty() && tree.is_settled());
}

#[test]
fn others_paths_are_ignored() {
    let mut tree = tree();
    let foreign = [
        (Event::Deleted, "/services/a/a/below"),
        (Event::Created, "/services/ab"),
        (Event::Changed, "/services/a"),
        (Event::Deleted, "/services"),
    ];
    assert!(!events(&mut tree, &foreign));
    assert!(tree.is_settled());
    assert_eq!(names(&tree), ["a", "b"]);
}

#[test]
fn a_deleted_path_is_an_empty_set() {
    let mut tree = tree();
    assert!(events(&mut tree, &[(Event::Deleted, PATH)]));
    assert!(tree.children().is_empty() && tree.is_settled());
    // Made anew, it may begin with any transactions.
    tree.begin_full(Trust::Nothing);
    tree.replace(
        Some(Parent {
            czxid: 50,
            ctime: 0,
            pzxid: 50,
        }),
        named(&[]),
    )
    .unwrap();
    tree.begin_full(Trust::Nothing);
    tree.replace(None, named(&[])).unwrap();
    assert!(tree.children().is_empty());
}

#[test]
fn an_older_list_is_refused_and_changes_nothing() {
    let mut tree = tree();
    tree.begin_full(Trust::Nothing);
    assert!(tree.replace(at(2), named(&[])).is_err());
    assert_eq!(names(&tree), ["a", "b"]);
    // What a child tells of the parent counts as well.
    events(&mut tree, &[(Event::Created, "/services/a/c")]);
    tree.begin_read();
    tree.apply(named(&[("c", child("1", 8, 8))]));
    tree.begin_full(Trust::Nothing);
    let error = tree.replace(at(7), named(&[])).unwrap_err();
    assert!(error.to_string().contains("pzxid 0x7"), "{error}");
    // The same transactions of a path deleted and made anew are newer.
    tree.begin_full(Trust::Nothing);
    tree.replace(
        Some(Parent {
            czxid: 9,
            ctime: 0,
            pzxid: 9,
        }),
        named(&[]),
    )
    .unwrap();
    assert!(tree.children().is_empty());
}

#[test]
fn a_reply_does_not_bring_back_what_was_deleted_meanwhile() {
    // Noted only, and noted and absorbed; for a read of some names and for a full one.
    for absorb in [false, true] {
        let mut tree = tree();
        events(&mut tree, &[(Event::Changed, "/services/a/a")]);
        tree.begin_read();
        tree.note(Event::Changed, "/services/a/a");
        tree.note(Event::Deleted, "/services/a/a");
        if absorb {
            tree.absorb();
        }
        tree.apply(named(&[("a", child("2", 2, 5))]));
        tree.absorb();
        assert_eq!(names(&tree), ["b"]);

        tree.begin_full(Trust::Nothing);
        tree.note(Event::Changed, "/services/a/b");
        tree.note(Event::Deleted, "/services/a/b");
        if absorb {
            tree.absorb();
        }
        tree.replace(at(6), named(&[("b", child("1", 3, 3))]))
            .unwrap();
        tree.absorb();
        assert!(tree.children().is_empty());
    }
}

#[test]
fn an_invalid_change_in_place_keeps_the_last_valid_value() {
    let mut tree = tree();
    let read = |tree: &mut Tree, data: &str, czxid, mzxid| {
        events(tree, &[(Event::Changed, "/services/a/a")]);
        tree.begin_read();
        tree.apply(named(&[("a", child(data, czxid, mzxid))]))
    };
    assert!(read(&mut tree, "!", 2, 5), "what is skipped has changed");
    assert_eq!(data(&tree, "a"), "1");
    assert!(tree.skipped()["a"].contains("last valid value"));
    assert!(read(&mut tree, "2", 2, 6));
    assert_eq!(
        (data(&tree, "a"), tree.skipped().len()),
        ("2".to_owned(), 0)
    );
    // Back to the value held: nothing but the note goes.
    read(&mut tree, "!", 2, 7);
    assert!(read(&mut tree, "2", 2, 8));
    assert!(tree.skipped().is_empty());
    // Another znode of that name is what it is: the funnel rejects it with the reason.
    assert!(read(&mut tree, "!", 9, 9));
    assert_eq!(data(&tree, "a"), "!");
}

#[test]
fn the_last_valid_value_survives_a_restart() {
    let valid: Validity = Arc::new(|_, data| !data.starts_with(b"!"));
    let snapshot = [(
        "a".to_owned(),
        Child {
            data: b"1"[..].into(),
            czxid: 0,
            mzxid: 0,
        },
    )];
    let mut tree = Tree::new(PATH, valid, Arc::new(snapshot.into()));
    tree.begin_full(Trust::Nothing);
    tree.replace(at(9), named(&[("a", child("!", 2, 5))]))
        .unwrap();
    assert_eq!(data(&tree, "a"), "1");
}

#[test]
fn data_above_the_limit_is_skipped_until_the_node_changes() {
    let big = || Read::data(vec![b'x'; MAX_DATA + 1], 4, 4);
    assert_eq!(
        Read::data(vec![b'x'; MAX_DATA], 4, 4),
        Read::Data(Child {
            data: vec![b'x'; MAX_DATA].into(),
            czxid: 4,
            mzxid: 4
        })
    );
    let mut tree = tree();
    events(&mut tree, &[(Event::Created, "/services/a/c")]);
    tree.begin_read();
    assert!(tree.apply(named(&[("c", big())])));
    assert_eq!(names(&tree), ["a", "b"]);
    assert_eq!(
        tree.skipped()["c"],
        "65537 bytes of data, above the limit of 65536"
    );
    assert_eq!(
        tree.begin_full(Trust::Nothing).refused,
        [("c".to_owned(), 4)].into()
    );
    let read = named(&[
        ("a", child("1", 2, 2)),
        ("b", child("1", 3, 3)),
        ("c", Read::StillRefused),
    ]);
    assert!(tree.replace(at(4), read).unwrap().is_empty());
    assert_eq!(tree.skipped().len(), 1);
    assert!(events(&mut tree, &[(Event::Deleted, "/services/a/c")]));
    assert!(tree.skipped().is_empty());
}

/// What the wire carries to the client, in order.
#[derive(Debug)]
enum Message {
    Event(Event, String),
    List(Option<(Parent, Vec<String>)>),
    Reads(Vec<(String, Read)>),
}

/// What the client has sent and the server not yet answered.
#[derive(Debug, Clone)]
enum Request {
    List,
    Read(Vec<String>),
}

#[derive(Debug, Clone)]
enum Step {
    Create(u8),
    Delete(u8),
    Change(u8),
    Swap(u8),
    Withdraw(u8),
    DeletePath,
    Answer,
    Deliver,
    Absorb,
    Compare,
    /// The connection is cut, and this many of the given changes happen before the watch is armed again.
    Cut(Vec<Step>),
}

#[derive(Default)]
struct Server {
    zxid: i64,
    parent: Option<Parent>,
    children: Children,
}

impl Server {
    /// Changes the tree and returns the events of it.
    fn change(&mut self, step: &Step) -> Vec<(Event, String)> {
        // Even ones are sequential, odd ones fixed names.
        let name = |n: &u8| match n % 2 {
            0 => format!("n_{n:010}"),
            _ => format!("n{n}"),
        };
        let path = |n: &u8| format!("{PATH}/{}", name(n));
        self.zxid += 1;
        let mut events = Vec::new();
        match step {
            Step::Create(n) if !self.children.contains_key(&name(n)) => {
                if self.parent.is_none() {
                    self.parent = Some(Parent {
                        czxid: self.zxid,
                        ctime: 0,
                        pzxid: self.zxid,
                    });
                    events.push((Event::Created, PATH.to_owned()));
                }
                self.put(&name(n));
                events.push((Event::Created, path(n)));
            }
            Step::Delete(n) if self.children.remove(&name(n)).is_some() => {
                self.touch();
                events.push((Event::Deleted, path(n)));
            }
            Step::Change(n) => {
                let zxid = self.zxid;
                if let Some(child) = self.children.get_mut(&name(n)) {
                    child.mzxid = zxid;
                    child.data = zxid.to_string().into_bytes().into();
                    events.push((Event::Changed, path(n)));
                }
            }
            Step::Swap(n) if self.children.contains_key(&name(n)) => {
                self.put(&name(n));
                events.extend([(Event::Deleted, path(n)), (Event::Created, path(n))]);
            }
            Step::Withdraw(n) if self.children.remove(&name(n)).is_some() => {
                self.touch();
                events.extend([(Event::Changed, path(n)), (Event::Deleted, path(n))]);
            }
            Step::DeletePath if self.parent.take().is_some() => {
                events.extend(
                    std::mem::take(&mut self.children)
                        .into_keys()
                        .map(|n| (Event::Deleted, format!("{PATH}/{n}"))),
                );
                events.push((Event::Deleted, PATH.to_owned()));
            }
            _ => {}
        }
        events
    }

    fn put(&mut self, name: &str) {
        let data = self.zxid.to_string().into_bytes().into();
        self.children.insert(
            name.to_owned(),
            Child {
                data,
                czxid: self.zxid,
                mzxid: self.zxid,
            },
        );
        self.touch();
    }

    fn touch(&mut self) {
        let zxid = self.zxid;
        if let Some(parent) = &mut self.parent {
            parent.pzxid = zxid;
        }
    }

    fn answer(&self, request: Request) -> Message {
        match request {
            Request::List => Message::List(
                self.parent
                    .map(|p| (p, self.children.keys().cloned().collect())),
            ),
            Request::Read(names) => {
                let read = |name: &String| {
                    self.children
                        .get(name)
                        .cloned()
                        .map_or(Read::Gone, Read::Data)
                };
                Message::Reads(names.into_iter().map(|n| (n.clone(), read(&n))).collect())
            }
        }
    }
}

/// The path, the names still to be read, what was read.
type FullRead = (Option<Parent>, Vec<String>, Vec<(String, Read)>);

/// What the shell does, with time taken out.
struct Client {
    tree: Tree,
    /// The full read under way.
    full: Option<FullRead>,
    busy: bool,
    complete: bool,
}

impl Client {
    fn begin(&mut self, compare: bool) -> Option<Request> {
        if self.busy {
            return None;
        }
        self.busy = true;
        if compare || !self.complete {
            self.tree.begin_full(Trust::Nothing);
            self.full = Some((None, Vec::new(), Vec::new()));
            return Some(Request::List);
        }
        let names = if self.tree.is_dirty() {
            self.tree.begin_read()
        } else {
            Vec::new()
        };
        self.busy = !names.is_empty();
        self.busy.then_some(Request::Read(names))
    }

    /// Returns the request that follows.
    fn receive(&mut self, message: Message) -> Option<Request> {
        match message {
            Message::Event(event, path) => {
                self.tree.note(event, &path);
                None
            }
            Message::List(list) => {
                let full = self.full.as_mut().expect("a list was asked for");
                if let Some((parent, names)) = list {
                    (full.0, full.1) = (Some(parent), names);
                }
                self.next_chunk()
            }
            Message::Reads(read) => match &mut self.full {
                None => {
                    self.tree.apply(read);
                    self.busy = false;
                    None
                }
                Some(full) => {
                    full.2.extend(read);
                    self.next_chunk()
                }
            },
        }
    }

    fn next_chunk(&mut self) -> Option<Request> {
        let full = self.full.as_mut().expect("a full read is under way");
        if full.1.is_empty() {
            let (parent, _, read) = self.full.take().expect("just seen");
            let differed = self
                .tree
                .replace(parent, read)
                .expect("this server never lags");
            assert!(
                !self.complete || differed.is_empty(),
                "differed without an event: {differed:?}"
            );
            self.busy = false;
            self.complete = true;
            return None;
        }
        let rest = full.1.split_off(full.1.len().min(2));
        Some(Request::Read(std::mem::replace(&mut full.1, rest)))
    }
}

fn change() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u8..5).prop_map(Step::Create),
        3 => (0u8..5).prop_map(Step::Delete),
        2 => (0u8..5).prop_map(Step::Change),
        2 => (0u8..5).prop_map(Step::Swap),
        1 => (0u8..5).prop_map(Step::Withdraw),
        1 => Just(Step::DeletePath),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => change(),
        6 => Just(Step::Answer),
        10 => Just(Step::Deliver),
        6 => Just(Step::Absorb),
        1 => Just(Step::Compare),
        1 => proptest::collection::vec(change(), 0..4).prop_map(Step::Cut),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_copy_converges_whatever_the_interleaving(steps in proptest::collection::vec(step(), 0..120)) {
        let mut server = Server::default();
        let mut client =
            Client { tree: Tree::new(PATH, Arc::new(|_, _| true), Arc::default()), full: None, busy: false, complete: false };
        let mut requests: VecDeque<Request> = VecDeque::new();
        let mut wire: VecDeque<Message> = VecDeque::new();
        requests.extend(client.begin(true));
        let ending = std::iter::repeat_n([Step::Answer, Step::Deliver, Step::Deliver, Step::Absorb], 400).flatten();
        for step in steps.into_iter().chain(ending) {
            match step {
                Step::Answer => wire.extend(requests.pop_front().map(|r| server.answer(r))),
                Step::Deliver => {
                    let next = wire.pop_front().and_then(|m| client.receive(m));
                    requests.extend(next);
                }
                Step::Absorb => {
                    client.tree.absorb();
                    requests.extend(client.begin(false));
                }
                Step::Compare => requests.extend(client.begin(true)),
                Step::Cut(meanwhile) => {
                    wire.clear();
                    requests.clear();
                    for change in &meanwhile {
                        server.change(change);
                    }
                    client.tree.restart();
                    (client.full, client.busy, client.complete) = (None, false, false);
                    requests.extend(client.begin(true));
                }
                change => wire.extend(server.change(&change).into_iter().map(|(e, p)| Message::Event(e, p))),
            }
        }
        prop_assert!(client.tree.is_settled() && requests.is_empty() && wire.is_empty());
        prop_assert_eq!(client.tree.children().as_ref(), &server.children);
    }
}

/// Transactions are compared within one history: of a wiped ensemble that has got further than before nothing is taken for what
/// it was, by its numbers. What was refused is asked for again, and what is invalid does not keep the value of another node.
#[test]
fn another_history_proves_nothing() {
    let valid: Validity = Arc::new(|_, data| data != b"bad");
    let mut tree = Tree::new(PATH, valid, Arc::default());
    tree.begin_full(Trust::Nothing);
    let (one, two, big) = ("s_0000000001", "s_0000000002", "s_0000000003");
    let refused = Read::Refused {
        reason: "too big".to_owned(),
        czxid: 4,
        mzxid: 4,
    };
    let mut read = named(&[(one, child("1", 2, 2)), (two, child("2", 3, 3))]);
    read.push((big.to_owned(), refused));
    tree.replace(at(4), read).unwrap();
    tree.restart();
    let known = tree.begin_full(Trust::Nodes);
    let below = |ctime| Parent {
        czxid: 1,
        ctime,
        pzxid: 9,
    };
    assert_eq!(known.refused(below(0)).count(), 1);
    assert_eq!(known.refused(below(7)).count(), 0);
    assert!(known.is_same(one, below(0)) && !known.is_same(one, below(7)));
    // The newest stands for the others; absent, or another, it proves nothing.
    let names = [one, two].map(str::to_owned);
    assert_eq!(known.witness(&names), Some(1));
    assert!(known.is_witnessed(two, &child("2", 3, 3)));
    for other in [
        child("2", 3, 5),
        child("other", 3, 3),
        child("2", 8, 8),
        Read::Gone,
    ] {
        assert!(!known.is_witnessed(two, &other), "{other:?}");
    }
    // The same name and transaction as before, and not the same node.
    let read = named(&[(one, child("bad", 2, 2)), (two, child("2", 3, 3))]);
    tree.replace(Some(below(7)), read).unwrap();
    assert_eq!(*tree.children()[one].data, *b"bad");
    assert!(tree.skipped().is_empty(), "{:?}", tree.skipped());
}
