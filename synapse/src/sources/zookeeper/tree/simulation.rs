//! A registry, a wire and a follower at random: lost replies, doubled events, cuts and expiry at any step, lists that come
//! late and rest on what is known, an ensemble that is wiped or restored from a backup and gets further than before. Whatever
//! comes, the copy must be the registry's at rest, a list that is taken over leaves nothing of another history, and an instance that is registered all the time must never be missing from
//! what is published, however often its session is swapped. Seeds: [`crate::testing`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use fastrand::Rng;

use super::*;

const PATH: &str = "/services/a";

#[derive(Clone)]
enum Message {
    Event(Event, String),
    List(Option<(Parent, Vec<String>)>),
    Reads(Vec<(String, Read)>),
}

enum Request {
    List,
    Read(Vec<String>),
}

/// The server: which node each instance has, and the path.
#[derive(Default, Clone)]
struct Registry {
    zxid: i64,
    /// How often it was wiped or restored.
    history: u32,
    /// The next number of a sequential name.
    sequence: i64,
    /// What was ever created in this history.
    ever: BTreeSet<(String, Arc<[u8]>)>,
    parent: Option<Parent>,
    children: Children,
    node: BTreeMap<u8, String>,
}

impl Registry {
    fn create(&mut self, instance: u8, events: &mut Vec<(Event, String)>) {
        if self.parent.is_none() {
            let (czxid, pzxid) = (self.zxid, self.zxid);
            self.parent = Some(Parent {
                czxid,
                ctime: (i64::from(self.history) << 32) + self.zxid,
                pzxid,
            });
            events.push((Event::Created, PATH.to_owned()));
        }
        // Odd instances have fixed names.
        let name = match instance % 2 {
            0 => format!("i{instance}_{:010}", self.sequence),
            _ => format!("i{instance}"),
        };
        self.sequence += 1;
        let child = Child {
            data: format!("{instance} {}", self.history).into_bytes().into(),
            czxid: self.zxid,
            mzxid: self.zxid,
        };
        events.push((Event::Created, format!("{PATH}/{name}")));
        self.ever.insert((name.clone(), Arc::clone(&child.data)));
        self.children.insert(name.clone(), child);
        self.node.insert(instance, name);
        self.touch();
    }

    fn delete(&mut self, name: &str, events: &mut Vec<(Event, String)>) {
        self.children.remove(name);
        events.push((Event::Deleted, format!("{PATH}/{name}")));
        self.touch();
    }

    fn touch(&mut self) {
        if let Some(parent) = &mut self.parent {
            parent.pzxid = self.zxid;
        }
    }

    /// One transaction. Returns its events.
    fn change(&mut self, rng: &mut Rng, removed: &mut BTreeSet<u8>) -> Vec<(Event, String)> {
        self.zxid += 1;
        let mut events = Vec::new();
        let instance = rng.u8(..6);
        let Some(name) = self.node.get(&instance).cloned() else {
            self.create(instance, &mut events);
            return events;
        };
        match rng.u8(..10) {
            // Its session is swapped.
            0..5 if instance.is_multiple_of(2) => {
                self.create(instance, &mut events);
                self.delete(&name, &mut events);
            }
            0..5 => {
                self.delete(&name, &mut events);
                self.create(instance, &mut events);
            }
            // A change and then a swap before it is read is what an announcement looks like: these two may show a gap.
            5 | 6 if instance < 4 => {}
            5 | 6 => {
                if let Some(child) = self.children.get_mut(&name) {
                    child.mzxid = self.zxid;
                }
                events.push((Event::Changed, format!("{PATH}/{name}")));
            }
            kind => {
                let whole = kind == 9 && rng.u8(..4) == 0;
                let gone: Vec<u8> = match whole {
                    true => self.node.keys().copied().collect(),
                    false => vec![instance],
                };
                for instance in gone {
                    let Some(name) = self.node.remove(&instance) else {
                        continue;
                    };
                    if kind == 7 {
                        events.push((Event::Changed, format!("{PATH}/{name}")));
                    }
                    self.delete(&name, &mut events);
                    removed.insert(instance);
                }
                if whole {
                    self.parent = None;
                    events.push((Event::Deleted, PATH.to_owned()));
                }
            }
        }
        events
    }

    /// Another history, from nothing or from a backup, that gets further than this one has.
    fn replaced(&mut self, backup: &Self, rng: &mut Rng) {
        let (zxid, history) = (self.zxid, self.history + 1);
        *self = match rng.bool() {
            true => backup.clone(),
            false => Self::default(),
        };
        self.history = history;
        while self.zxid <= zxid + 1 || self.parent.is_none_or(|parent| parent.pzxid <= zxid) {
            self.change(rng, &mut BTreeSet::new());
        }
    }

    fn answer(&self, request: Request) -> Message {
        match request {
            Request::List => {
                let names = || self.children.keys().cloned().collect();
                Message::List(self.parent.map(|parent| (parent, names())))
            }
            Request::Read(names) => {
                let read = |name: &String| self.children.get(name).cloned();
                let read = |name: String| {
                    let read = read(&name).map_or(Read::Gone, Read::Data);
                    (name, read)
                };
                Message::Reads(names.into_iter().map(read).collect())
            }
        }
    }
}

/// A full read under way: the path, the names to be read, what was read.
type Full = (Option<Parent>, Vec<String>, Vec<(String, Read)>);

/// What is trusted on the word of one that is read, and what is known of that one.
type Trusted = (Vec<String>, String, Known);

/// The follower without its time and its sockets.
struct Follower {
    tree: Tree,
    known: Option<Known>,
    full: Option<Full>,
    trusted: Option<Trusted>,
    busy: bool,
    complete: bool,
}

impl Follower {
    /// A full read, or what is dirty. Before the first full read of a connection events are followed as well.
    fn begin(&mut self, full: Option<Trust>) -> Option<Request> {
        if self.busy {
            return None;
        }
        if let Some(trust) = full {
            let trust = if self.complete { Trust::Nothing } else { trust };
            self.busy = true;
            self.known = Some(self.tree.begin_full(trust));
            self.full = Some((None, Vec::new(), Vec::new()));
            self.trusted = None;
            return Some(Request::List);
        }
        self.busy = self.tree.is_dirty();
        self.busy.then(|| Request::Read(self.tree.begin_read()))
    }

    /// What is owed however long it takes.
    fn owed(&self) -> Option<Trust> {
        (self.tree.unlisted || self.tree.is_unverified()).then_some(Trust::Nothing)
    }

    fn receive(&mut self, message: Message) -> Option<Request> {
        match message {
            Message::Event(event, path) => {
                self.tree.note(event, &path);
                return None;
            }
            Message::List(list) => {
                let full = self.full.as_mut().expect("a list was asked for");
                if let Some((parent, names)) = list {
                    let known = self.known.take().expect("a list was asked for");
                    let (mut same, mut names): (Vec<_>, Vec<_>) =
                        names.into_iter().partition(|n| known.is_same(n, parent));
                    if let Some(at) = known.witness(&same) {
                        let witness = same.swap_remove(at);
                        names.push(witness.clone());
                        self.trusted = Some((same, witness, known));
                    }
                    (full.0, full.1) = (Some(parent), names);
                }
            }
            Message::Reads(read) => match &mut self.full {
                Some(full) => full.2.extend(read),
                None => {
                    self.tree.apply(read);
                    self.busy = false;
                    return None;
                }
            },
        }
        let full = self.full.as_mut().expect("a full read is under way");
        if !full.1.is_empty() {
            let rest = full.1.split_off(full.1.len().min(2));
            return Some(Request::Read(std::mem::replace(&mut full.1, rest)));
        }
        if let Some((same, witness, known)) = self.trusted.take() {
            let read = full.2.iter().find(|(name, _)| *name == witness);
            if read.is_some_and(|(name, read)| known.is_witnessed(name, read)) {
                full.2.extend(same.into_iter().map(|n| (n, Read::Same)));
            } else if !same.is_empty() {
                return Some(Request::Read(same));
            }
        }
        let (parent, _, read) = self.full.take().expect("just seen");
        let Ok(differed) = self.tree.replace(parent, read) else {
            // As far as the numbers go, a server may lag; another try begins with a `sync`, after which none does.
            self.restart();
            self.tree.forget_parent();
            return None;
        };
        assert!(!self.complete || differed.is_empty(), "{differed:?}");
        (self.busy, self.complete) = (false, !self.tree.is_unverified());
        None
    }

    /// The connection, or the session, is over; or a reply was lost. Everything begins again, sooner or later.
    fn restart(&mut self) {
        self.tree.restart();
        (self.full, self.trusted) = (None, None);
        (self.busy, self.complete) = (false, false);
    }

    fn instances(&self) -> BTreeSet<u8> {
        let data = self.tree.children().values().map(|child| &child.data);
        let number = |data: &Arc<[u8]>| {
            std::str::from_utf8(data)
                .ok()?
                .split(' ')
                .next()?
                .parse()
                .ok()
        };
        data.filter_map(number).collect()
    }
}

#[test]
fn at_rest_the_copy_is_the_registry_and_no_swap_shows_a_gap() {
    crate::testing::run("zookeeper::tree::simulation", |seed| {
        let mut rng = Rng::with_seed(seed);
        let mut registry = Registry::default();
        let tree = Tree::new(PATH, Arc::new(|_, _| true), Arc::default());
        let (known, full, busy, complete) = (None, None, false, false);
        let mut follower = Follower {
            tree,
            known,
            full,
            trusted: None,
            busy,
            complete,
        };
        let mut requests: VecDeque<Request> = VecDeque::new();
        let mut wire: VecDeque<Message> = VecDeque::new();
        // Instances seen in the copy and registered ever since.
        let mut stable: BTreeSet<u8> = BTreeSet::new();
        let doubled = rng.bool();
        let mut backup = registry.clone();
        requests.extend(follower.begin(Some(Trust::Nothing)));
        for step in 0..400 {
            let mut removed = BTreeSet::new();
            let trust = [Trust::Nothing, Trust::Nodes][rng.usize(..2)];
            let full = rng.bool().then_some(trust);
            // The registry comes to rest, and so does everything else.
            let action = if step < 150 {
                rng.u8(..40)
            } else {
                8 + rng.u8(..30)
            };
            match action {
                0..8 => {
                    for (event, path) in registry.change(&mut rng, &mut removed) {
                        let message = Message::Event(event, path);
                        wire.extend(doubled.then(|| message.clone()));
                        wire.push_back(message);
                    }
                }
                8..16 => wire.extend(requests.pop_front().map(|r| registry.answer(r))),
                16..28 => {
                    let full = follower.full.is_some();
                    let next = wire.pop_front().and_then(|m| follower.receive(m));
                    requests.extend(next);
                    if full && follower.full.is_none() && !follower.tree.unlisted {
                        let copy = follower.tree.children().iter();
                        // Of what an event has told since, nothing is said.
                        let copy = copy.filter(|(name, _)| !follower.tree.is_noted(name));
                        let mut copy = copy.map(|(name, child)| (name.clone(), child.data.clone()));
                        let of_another = copy.find(|child| !registry.ever.contains(child));
                        assert_eq!(of_another, None, "step {step}: of another history");
                    }
                }
                28..37 => {
                    follower.tree.absorb();
                    requests.extend(follower.begin(None));
                }
                37 => requests.extend(follower.begin(Some(trust))),
                38 => {
                    // A reply is lost with the connection, or the session is expired; changes go on meanwhile.
                    wire.clear();
                    requests.clear();
                    for _ in 0..rng.u8(..4) {
                        registry.change(&mut rng, &mut removed);
                    }
                    match rng.u8(..6) {
                        0 => backup = registry.clone(),
                        1 => {
                            registry.replaced(&backup, &mut rng);
                            stable.clear();
                        }
                        _ => {}
                    }
                    follower.restart();
                    requests.extend(follower.begin(full));
                }
                _ => {
                    // A reply is lost alone: the follower gives up what it was doing.
                    if wire.iter().any(|m| !matches!(m, Message::Event(..))) {
                        wire.clear();
                        requests.clear();
                        follower.restart();
                        requests.extend(follower.begin(full));
                    }
                }
            }
            stable.retain(|instance| !removed.contains(instance));
            let seen = follower.instances();
            assert!(
                stable.is_subset(&seen),
                "step {step}: {stable:?} in {seen:?}"
            );
            // What is shown of the others may be a node of before they were removed.
            let now = |(instance, name): &(&u8, &String)| {
                let (copy, real) = (follower.tree.children(), &registry.children);
                **instance < 4 && copy.contains_key(*name) && copy.get(*name) == real.get(*name)
            };
            let registered = registry.node.iter().filter(now);
            stable.extend(registered.map(|(instance, _)| *instance));
        }
        for _ in 0..100 {
            wire.extend(requests.pop_front().map(|r| registry.answer(r)));
            while let Some(message) = wire.pop_front() {
                requests.extend(follower.receive(message));
            }
            follower.tree.absorb();
            requests.extend(follower.begin(follower.owed()));
        }
        assert!(follower.tree.is_settled() && requests.is_empty() && wire.is_empty());
        assert_eq!(follower.tree.children().as_ref(), &registry.children);
        assert!(follower.tree.skipped().is_empty());
    });
}
