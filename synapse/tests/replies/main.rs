//! What haproxy answers, provoked from the real one, and what synapse does then: the reply table of haproxy.md §11 and the
//! facts 2, 3, 4, 6 and 9 of its §0. haproxy is changed behind synapse's back over its stats socket, or what passes
//! between the two is meddled with ([`gate`]); nothing is looked at that nothing points to (`audit_interval`), so that it
//! is the reply that is reacted to. Each row ends with table, file and registry the same.
//!
//! | reply or event | test | reaction |
//! |---|---|---|
//! | `Already exists a server with the same name` | `a_taken_name`, `a_taken_name_elsewhere` | read again; its options are not known: one reload; another address is put right before |
//! | `No such server.` to a removal, a deletion | `removed_already`, `deleted_already` | nothing more |
//! | `No such server.` to a change of a wanted one | `a_wanted_one_is_gone` | added again, no reload |
//! | `No such backend.` | `no_such_backend` | one reload, only that worker is remembered |
//! | `still has connections attached` | `with_connections` | asked again until it goes |
//! | `cannot be removed ... pointing to it` | `pointed_to` | stays in maint until the next reload |
//! | `must use a dynamic load balancing` | `not_dynamic` | one reload, remembered and shown: the next is not tried |
//! | `is not accepted for dynamic server` | `not_accepted` | the same |
//! | `unknown keyword` | `unknown` | the same |
//! | any lasting refusal of a weight, a removal, a return, checks, an address | `kinds::each_kind` | one reload with the reason; not asked again |
//! | a lasting refusal of a deletion | `kinds::a_deletion` | stays in maint until the next reload; not asked again |
//! | `only accepts weights '0%' and '100%'` | `kinds::static_algorithms` | known from the algorithm and not asked; else remembered |
//! | `Permission denied` | `kinds::level_operator` | every change is a reload, told once |
//! | `custom id N already used` | `a_taken_id`, `the_id_of_a_server_that_waits` | an id that is known to be in use is not given; who took one unseen is taken out |
//! | timeout, connection closed | `lost_answers`, `a_lost_removal`, `long_silence` | read back; never a reload (SPEC §4) |
//! | another form than haproxy's | `cannot_be_talked_to` | told with name, version and words; every change is a reload until it can be talked to |
//! | connection refused | `refused` | unreachable; attempts back off |
//! | another worker without our reload | `reloaded_by_somebody_else` | read, nothing to do |
//! | haproxy gone | `haproxy_is_gone`; other ways of running it: `end_to_end/haproxy.rs` | started on the file, nothing to do |
//! | fact 2: inherits nothing, pool keywords, id | `inherits`; shares and reuse: `end_to_end/balance.rs` | the merged form is sent |
//! | fact 3: `enabled` | `enabled` | left out |
//! | fact 4: no sessions shut down | `removed`, and every command of every row | weight 0, maint, deleted later |
//! | fact 6: a reload forgets | `reloaded_by_somebody_else`, `a_reload_forgets_what_the_file_has_not` | the file has it first |
//! | fact 9: the old worker says yes | `an_old_worker_says_yes` | looked at over another connection, sent again |

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![allow(clippy::print_stdout, reason = "each row says what it has seen")]

mod gate;
mod hung;
mod kinds;
mod refusals;
#[path = "../rig/mod.rs"]
mod rig;
mod servers;
mod silence;
mod stage;
mod workers;

use serde_json::json;
use stage::Stage;

/// Runs rows one after the other and says how long each took.
macro_rules! rows {
    ($stage:expr, $($module:ident::$row:ident),* $(,)?) => {
        $(
            let began = tokio::time::Instant::now();
            println!(stringify!($row));
            $module::$row(&mut $stage).await;
            println!("    {:.1} s", began.elapsed().as_secs_f64());
        )*
    };
}

/// Fact 4, of every row: nothing that was ever sent shuts a session down or says `enabled`.
fn assert_harmless(stage: &Stage) {
    for said in stage.gate.said("") {
        let mut words = said.command.split(' ');
        assert!(
            words.all(|word| !["shutdown", "enabled"].contains(&word)),
            "{said:?}"
        );
    }
}

#[tokio::test]
async fn refusals_are_acted_upon() {
    let mut stage = Stage::start(&[
        ("name", json!({})),
        ("id", json!({})),
        ("gone", json!({})),
        ("busy", json!({"backend": ["http-reuse never"]})),
        ("waits", json!({"backend": ["http-reuse never"]})),
        ("tracked", json!({"server_options": "check"})),
        ("no_static", json!({"backend": [
            "balance source", ".if !defined(HAPROXY_CFGFILES)", "hash-type consistent", ".endif",
        ]})),
        ("no_keyword", json!({"server_options": "resolve-prefer ipv4"})),
        ("no_unknown", json!({})),
    ])
    .await;
    println!("deleted_already");
    let deleted = refusals::deleted_already(&mut stage).await;
    rows!(
        stage,
        refusals::removed_already,
        refusals::a_wanted_one_is_gone,
        refusals::a_taken_name,
        refusals::a_taken_name_elsewhere,
        refusals::a_taken_id,
        refusals::not_dynamic,
        refusals::not_accepted,
        refusals::unknown,
        refusals::the_id_of_a_server_that_waits,
        refusals::with_connections,
        refusals::pointed_to,
    );
    assert_eq!(
        stage.gate.said(&deleted).len(),
        1,
        "deleted_already: it was asked again"
    );
    assert_harmless(&stage);
}

#[tokio::test]
async fn whatever_is_refused_has_an_end() {
    let hidden = json!({"backend": [
        "balance source", ".if !defined(HAPROXY_CFGFILES)", "hash-type consistent", ".endif",
    ]});
    let mut stage = Stage::start(&[
        ("kinds", json!({"server_options": "check inter 1s"})),
        ("other", json!({})),
        ("static_rr", json!({"backend": ["balance static-rr"]})),
        ("static_source", json!({"backend": ["balance source"]})),
        ("static_uri", json!({"backend": ["balance uri whole"]})),
        ("hidden", hidden),
    ])
    .await;
    rows!(
        stage,
        kinds::each_kind,
        kinds::a_deletion,
        kinds::static_algorithms,
        kinds::states_are_fresh,
        kinds::level_operator,
    );
    assert_harmless(&stage);
}

#[tokio::test]
async fn a_haproxy_that_hangs_or_cannot_be_asked_is_not_said_to_serve() {
    let mut stage = Stage::start(&[("one", json!({}))]).await;
    rows!(
        stage,
        hung::it_is_told,
        hung::it_cannot_be_asked,
        hung::it_is_replaced,
        hung::without_a_socket
    );
}

#[tokio::test]
async fn lost_answers_are_read_back() {
    let mut stage = Stage::start(&[("silent", json!({}))]).await;
    rows!(
        stage,
        silence::lost_answers,
        silence::a_lost_removal,
        silence::long_silence,
        silence::refused,
        silence::cannot_be_talked_to,
    );
    assert_harmless(&stage);
}

#[tokio::test]
async fn other_workers_are_noticed() {
    let mut stage = Stage::start(&[("one", json!({})), ("two", json!({}))]).await;
    rows!(
        stage,
        workers::reloaded_by_somebody_else,
        workers::a_reload_forgets_what_the_file_has_not,
        workers::an_old_worker_says_yes,
        workers::no_such_backend,
        workers::haproxy_is_gone,
    );
    assert_harmless(&stage);
}

#[tokio::test]
async fn servers_are_what_the_file_would_make_of_them() {
    let defaults = "default-server inter 700ms fastinter 300ms downinter 400ms rise 4 fall 5 maxconn 33 maxqueue 44";
    let mut stage = Stage::start(&[
        (
            "inherits",
            json!({"backend": [defaults], "server_options": "check"}),
        ),
        ("plain", json!({"server_options": "enabled"})),
        (
            "removed",
            json!({"server_options": "pool-purge-delay 100ms"}),
        ),
    ])
    .await;
    rows!(stage, servers::inherits, servers::enabled, servers::removed);
    assert_harmless(&stage);
}
