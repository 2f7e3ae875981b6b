//! What a guard leaves to the next process, and takes over from the former one.

use std::sync::Arc;
use std::time::Duration;

use super::{Base, Guard, Loss};
use crate::config::guard::Mode;
use crate::model::member::{Address, Member, Why};
use crate::model::source::Child;
use crate::snapshot::Payload;
use crate::snapshot::holds::ms;
use crate::wanted::guard::{Held, Saved, SavedMember};

impl Guard {
    /// Takes over what was saved. Of another boot only what an empty registry holds without end is believed.
    pub fn restore(&mut self, saved: &Saved, boot: &str) {
        if self.settings.mode == Mode::Off {
            return;
        }
        let same_boot = saved.boot == boot && !boot.is_empty();
        for one in &saved.held {
            let held = Held {
                member: member(one),
                since: Duration::from_millis(one.since),
                judged_from: Duration::from_millis(one.judged_from),
                until: one.until.map(Duration::from_millis),
                why: one.why.unwrap_or(Why::Share),
                shared: one.shared,
            };
            if same_boot || held.until.is_none() {
                self.held.insert(one.address(), held);
            }
        }
        if same_boot {
            for one in &saved.losses {
                let loss = Loss {
                    member: member(one),
                    at: Duration::from_millis(one.since),
                    shared: one.shared,
                    believed: one.believed,
                };
                self.losses.insert(one.address(), loss);
            }
            self.conceded = self.believed();
            self.whole = saved.whole;
        } else {
            self.whole = self.size + self.held.len();
        }
        if !self.held.is_empty() {
            self.revision += 1;
            if self.base == Base::Nothing {
                self.base = if same_boot { Base::Good } else { Base::Old };
            }
        }
    }

    /// For the snapshot. What a shadow would hold is not kept.
    #[must_use]
    pub fn save(&self, boot: &str) -> Saved {
        let mut saved = Saved {
            boot: boot.to_owned(),
            ..Saved::default()
        };
        if self.settings.mode != Mode::On {
            return saved;
        }
        saved.whole = self.whole;
        let one = |address: &Address, member: &Member, since: Duration, shared: bool| SavedMember {
            host: Arc::clone(&address.host),
            port: address.port,
            znode: Arc::clone(&member.znode),
            data: Payload(Arc::clone(&member.child.data)),
            since: ms(since),
            judged_from: ms(since),
            until: None,
            why: None,
            shared,
            believed: false,
        };
        saved.held = self
            .held
            .iter()
            .map(|(address, held)| SavedMember {
                judged_from: ms(held.judged_from),
                until: held.until.map(ms),
                why: Some(held.why),
                ..one(address, &held.member, held.since, held.shared)
            })
            .collect();
        saved.losses = self
            .losses
            .iter()
            .map(|(address, loss)| SavedMember {
                believed: loss.believed,
                ..one(address, &loss.member, loss.at, loss.shared)
            })
            .collect();
        saved
    }
}

fn member(saved: &SavedMember) -> Member {
    Member {
        znode: Arc::clone(&saved.znode),
        child: Child {
            data: Arc::clone(&saved.data.0),
            czxid: 0,
            mzxid: 0,
        },
    }
}
