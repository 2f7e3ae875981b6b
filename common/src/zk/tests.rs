//! The pure parts: every decision of the machine, the classes of errors, the host list.

use std::time::Duration;

use tokio::time::Instant;
use zookeeper_client::{Error, SessionState};

use super::machine::{Action, Event, Machine, Phase, Refusal};
use super::{CallError, Link, LinkStatus, Trouble, call};
use crate::units::Ensemble;

fn state(state: SessionState) -> Event {
    Event::State(state)
}

const GRANTED: Duration = Duration::from_secs(10);

fn opened() -> Event {
    Event::Opened { granted: GRANTED }
}

/// A machine that saw `events`, and the last action.
fn after(events: &[Event], now: Instant) -> (Machine, Action) {
    let mut machine = Machine::new();
    let mut action = Action::Connect;
    for event in events {
        action = machine.step(event.clone(), now);
    }
    (machine, action)
}

fn live() -> Vec<Event> {
    vec![opened(), Event::Synced]
}

fn with(mut events: Vec<Event>, more: &[Event]) -> Vec<Event> {
    events.extend_from_slice(more);
    events
}

#[test]
fn every_event_in_every_phase() {
    use SessionState::{
        AuthFailed, Closed, ConnectedReadOnly, Disconnected, Expired, SyncConnected,
    };
    let now = Instant::now();
    let suspended = with(live(), &[state(Disconnected)]);
    let lost = with(suspended.clone(), &[state(Expired)]);
    let fatal = vec![Event::OpenFailed(Refusal::Fatal("why".to_owned()))];
    let is = |phase: &Phase| match phase {
        Phase::Connecting => "connecting",
        Phase::Live => "live",
        Phase::Suspended { .. } => "suspended",
        Phase::Lost { .. } => "lost",
        Phase::Fatal(_) => "fatal",
    };
    let unreachable = || Event::OpenFailed(Refusal::Unreachable);
    let expired = || Event::OpenFailed(Refusal::Expired);
    #[rustfmt::skip]
    let table: Vec<(Vec<Event>, Event, &str, u64, Action)> = vec![
        // No session yet.
        (vec![], opened(), "connecting", 0, Action::Sync),
        (vec![], unreachable(), "connecting", 0, Action::ConnectLater),
        (vec![], expired(), "connecting", 0, Action::ConnectLater),
        (vec![], Event::OpenFailed(Refusal::Fatal("why".to_owned())), "fatal", 0, Action::ConnectMuchLater),
        // Open, not synced: never shown.
        (vec![opened()], Event::Synced, "live", 1, Action::Attend),
        (vec![opened()], Event::SyncFailed, "connecting", 0, Action::SyncLater),
        (vec![opened()], state(Disconnected), "connecting", 0, Action::Attend),
        (vec![opened()], state(SyncConnected), "connecting", 0, Action::Sync),
        (vec![opened()], state(Expired), "connecting", 0, Action::ConnectLater),
        (vec![opened(), state(Expired)], expired(), "connecting", 0, Action::Connect),
        // Live. A change that ends where it began is a loss and a recovery that merged.
        (live(), state(SyncConnected), "live", 2, Action::Attend),
        (live(), state(Disconnected), "suspended", 1, Action::Attend),
        (live(), state(ConnectedReadOnly), "suspended", 1, Action::Attend),
        (live(), state(Expired), "lost", 1, Action::ConnectBraked),
        (live(), state(Closed), "lost", 1, Action::ConnectBraked),
        (live(), Event::Doubted, "lost", 1, Action::ConnectBraked),
        (suspended.clone(), Event::Stalled, "lost", 1, Action::ConnectBraked),
        (vec![opened(), state(Disconnected)], Event::Stalled, "connecting", 0, Action::ConnectLater),
        (live(), Event::Lasted, "live", 1, Action::Attend),
        (suspended.clone(), Event::Doubted, "lost", 1, Action::ConnectBraked),
        (live(), state(AuthFailed), "fatal", 1, Action::ConnectMuchLater),
        // Suspended.
        (suspended.clone(), state(SyncConnected), "live", 2, Action::Attend),
        (suspended.clone(), state(Disconnected), "suspended", 1, Action::Attend),
        (suspended.clone(), state(Expired), "lost", 1, Action::ConnectBraked),
        (suspended, state(Closed), "lost", 1, Action::ConnectBraked),
        // Lost: the new client, resumed or not, is synced before it is shown.
        (lost.clone(), opened(), "lost", 1, Action::Sync),
        (with(lost.clone(), &[opened()]), state(SyncConnected), "lost", 1, Action::Sync),
        (with(lost.clone(), &[opened()]), Event::Synced, "live", 2, Action::Attend),
        (with(lost.clone(), &[opened()]), state(Expired), "lost", 1, Action::ConnectLater),
        (lost.clone(), unreachable(), "lost", 1, Action::ConnectLater),
        (lost.clone(), expired(), "lost", 1, Action::Connect),
        (with(lost, &[expired()]), expired(), "lost", 1, Action::ConnectLater),
        // Fatal stays until a client is live.
        (fatal.clone(), unreachable(), "fatal", 0, Action::ConnectLater),
        (with(fatal.clone(), &[opened()]), state(Expired), "fatal", 0, Action::ConnectLater),
        (with(fatal, &[opened()]), Event::Synced, "live", 1, Action::Attend),
    ];
    for (before, event, phase, epoch, action) in table {
        let (machine, did) = after(&with(before.clone(), std::slice::from_ref(&event)), now);
        let found = (is(&machine.phase), machine.epoch, did);
        assert_eq!(found, (phase, epoch, action), "{before:?}, then {event:?}");
    }
}

#[test]
fn a_session_is_resumed_until_a_server_refuses_it() {
    let now = Instant::now();
    let lost = with(
        live(),
        &[
            state(SessionState::Expired),
            Event::OpenFailed(Refusal::Unreachable),
        ],
    );
    assert!(after(&lost, now).0.resumable);
    let refused = with(lost, &[Event::OpenFailed(Refusal::Expired)]);
    assert!(!after(&refused, now).0.resumable);
    assert!(after(&with(refused, &[opened()]), now).0.resumable);
}

/// Success is what lasts: a session that was live for as long as its time-out. After one that was not, however it ended, the
/// next has to wait, and so on until one has lasted.
#[test]
fn a_session_that_does_not_last_is_no_success() {
    let (short, long) = (GRANTED - Duration::from_millis(1), GRANTED);
    let ends = [
        state(SessionState::Expired),
        state(SessionState::Closed),
        Event::Doubted,
    ];
    let mut now = Instant::now();
    let mut machine = Machine::new();
    let mut session = |machine: &mut Machine, life, end: &Event| {
        machine.step(opened(), now);
        machine.step(Event::Synced, now);
        now += life;
        let lasts_at = machine.lasts_at();
        let action = machine.step(end.clone(), now);
        machine.step(Event::OpenFailed(Refusal::Expired), now);
        (action, machine.short_lived, lasts_at.map(|at| at > now))
    };
    for round in 0..10 {
        let end = &ends[round % ends.len()];
        let before = u32::try_from(round).expect("few");
        let braked = (
            Action::ConnectBraked,
            before + 1,
            (round > 0).then_some(true),
        );
        assert_eq!(session(&mut machine, short, end), braked);
    }
    let lasted = session(&mut machine, long, &ends[0]);
    assert_eq!(lasted, (Action::Connect, 0, Some(false)));
    assert_eq!(session(&mut machine, short, &ends[1]).1, 1);
    assert_eq!(session(&mut machine, long, &ends[2]).1, 0);
    // Said while it is live: nothing is told of the sessions before.
    session(&mut machine, short, &ends[0]);
    machine.step(opened(), now);
    machine.step(Event::Synced, now);
    assert_eq!(machine.lasts_at(), Some(now + GRANTED));
    machine.step(Event::Lasted, now + GRANTED);
    assert_eq!((machine.short_lived, machine.lasts_at()), (0, None));
}

#[test]
fn the_clock_of_a_gap_starts_when_the_connection_was_lost() {
    let start = Instant::now();
    let (mut machine, _) = after(&live(), start);
    machine.step(state(SessionState::Disconnected), start);
    let later = start + Duration::from_secs(5);
    machine.step(state(SessionState::Expired), later);
    machine.step(opened(), later);
    machine.step(state(SessionState::Disconnected), later);
    assert_eq!(machine.phase, Phase::Lost { since: start });
}

#[test]
fn only_errors_that_surely_did_nothing_are_definite() {
    let table = [
        (Error::SessionExpired, Trouble::Terminal),
        (Error::ClientClosed, Trouble::Terminal),
        (Error::AuthFailed, Trouble::Terminal),
        (Error::NoNode, Trouble::NoNode),
        (Error::NodeExists, Trouble::NodeExists),
        (Error::NotEmpty, Trouble::NotEmpty),
        (Error::BadVersion, Trouble::BadVersion),
        (Error::NoAuth, Trouble::NoAuth),
        (Error::QuotaExceeded, Trouble::Refused),
        (Error::Unimplemented, Trouble::TooOld),
        (Error::MarshallingError, Trouble::TooOld),
        (Error::UnexpectedErrorCode(-120), Trouble::LocalSession),
        (Error::UnexpectedErrorCode(-119), Trouble::Refused),
        (Error::ConnectionLoss, Trouble::Lost),
        (Error::Timeout, Trouble::Lost),
        (Error::SessionMoved, Trouble::Lost),
        (
            Error::UnexpectedError("recv response with xid 7".to_owned()),
            Trouble::Lost,
        ),
    ];
    for (error, trouble) in table {
        assert_eq!(Trouble::from(&error), trouble, "{error:?}");
    }
}

#[tokio::test]
async fn a_call_without_a_reply_has_an_unknown_outcome() {
    let limit = Duration::from_millis(1);
    let error = call(limit, std::future::pending::<Result<(), Error>>())
        .await
        .expect_err("no reply");
    assert_eq!(
        (error.trouble(), error.to_string().as_str()),
        (Trouble::Lost, "no reply within 1ms, the outcome is unknown")
    );
    let refused = call(limit, async { Err::<(), _>(Error::NoNode) }).await;
    assert_eq!(refused, Err(CallError::Failed(Error::NoNode)));
}

/// The client refuses a whole list for one of these, so an ensemble has none of them.
#[test]
fn an_ensemble_has_no_host_that_the_client_cannot_parse() {
    for malformed in ["[::1:2", "a]:1", ":1", "[a]:1", "[]:1", "::1:2181"] {
        for list in [vec![malformed], vec!["b:2", malformed]] {
            assert!(Ensemble::new(&list).is_err(), "{list:?}");
        }
    }
}

#[test]
fn status_names_the_ensemble_and_the_state() {
    let ensemble = Ensemble::new(&["a:1", "b:2/root"]).expect("two hosts");
    let status = LinkStatus::of(&ensemble, &Link::Fatal("why".to_owned()));
    let json = serde_json::to_string(&status).expect("plain data");
    let text = r#"{"hosts":"a:1,b:2/root","state":"fatal","session":null,"epoch":null,"session_timeout":null,"since":null,"error":"why"}"#;
    assert_eq!(json, text);
    let since = LinkStatus::of(
        &ensemble,
        &Link::Suspended {
            since: Instant::now(),
        },
    )
    .since;
    assert!(since.is_some_and(|since| since > 1.7e9));
}
