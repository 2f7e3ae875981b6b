//! Everything that can happen to ZooKeeper, to the network and to the programs' disks, during steady traffic: real members,
//! real nerves, a real synapse with its haproxy, and clients that never retry. `make faults` runs the long forms.
//!
//! Each row begins and ends with registry, synapse and haproxy in agreement; an app's health changes during the fault, so
//! that there is something to agree on. What must hold of every row: **no request fails; agreement comes within 1 s of the
//! sessions being back** (printed, and asserted at ten times that); **never fewer servers in haproxy's table than before or
//! after**, but those of a nerve whose session is gone; every app is registered once. Printed: requests, failed ones, time to
//! agreement after the fault's end and after the last session was back, sessions kept, fewest servers, reloads. Sessions
//! are of 3 s, the jitter is 0.
//!
//! | Fault | What must hold beyond that | Test |
//! |---|---|---|
//! | **Members** | | |
//! | SIGSTOP of the leader, 5 s | | `members::members_stand_still_or_die` |
//! | SIGSTOP of a follower, 5 s | | the same |
//! | SIGKILL of the leader; of a follower | | the same |
//! | rolling restart of the three | | the same |
//! | all three killed for 5 s | | the same |
//! | all three killed, wiped, started empty | the guard holds all servers and says why; nerves register again; the hold ends when the set is whole | `members::all_members_are_wiped_and_come_back_empty` |
//! | **Connections** | | |
//! | 300 ms delay; drip of 8 bytes each 5 ms | no session is lost | `proxies::connections_are_slow_or_silent_or_refused` |
//! | blackhole for 1 s, for 5 s; of synapse alone | | the same |
//! | blackhole of all nerves, 5 s | all nodes expire, not at one moment: the first may leave until there are too many, then all are restored | the same |
//! | refused for 1 s, for 5 s | | the same |
//! | reset, closed, cut within a frame, 20 times each | no session is lost | `proxies::connections_are_cut` |
//! | refused, with the default session time-out and jitter | the spread of the defaults | `proxies::with_default_settings` |
//! | 200 (10,000) reconnections | memory and the servers' watches stay as they are; no session is lost | `reconnects::a_client_reconnects_many_times` |
//! | **Hosts in network namespaces** | | |
//! | synapse's host cut off from all members: both ways, each way alone, by a blackhole route | | `network::hosts_are_cut_off_from_the_ensemble` |
//! | a nerve's host cut off for 1 s; for 5 s | after 5 s its servers are out, and come back | the same |
//! | the leader's host cut off from all others: both ways, one way | | `network::the_leader_is_cut_off` |
//! | **Programs** | | |
//! | SIGSTOP of a nerve for 1 s; for 5 s | after 5 s its servers are out, and come back | `processes::programs_stand_still_or_die_or_lose_their_sessions` |
//! | SIGKILL of a nerve, started again at once; after 5 s | at once: its nodes are swapped without a gap | the same |
//! | SIGSTOP of synapse for 1 s, for 5 s; SIGKILL, started again at once, after 5 s | | the same |
//! | a session closed by the servers: nerve's, synapse's | nerve's servers are out until it has registered again | the same |
//! | SIGSTOP of haproxy's worker for 1 s, for 4 s | requests wait, none fails | the same |
//! | a stats socket of level operator; refused weights while another service is reloaded | changes come by reload | the same |
//! | a server that lines name is withdrawn and returns, four times; an unrelated HUP and a restart of synapse meanwhile | every text of haproxy.cfg loads; no reload but the HUP's | `synapse/tests/end_to_end` `servers_that_lines_name_come_and_go_under_traffic` |
//! | kills of haproxy, foreign reloads, its sockets away | failed requests are those a killed haproxy had | `synapse/tests/soak` |
//! | **nerve and its host** | | |
//! | SIGSTOP of a nerve until its session is gone (for 30 s), its app killed meanwhile; an outage in which the app dies, 3 times | it does not come back registered, though down only after 20 failures | `nerve/tests/sessions.rs` `a_frozen_nerve_does_not_register_a_dead_app`, `an_app_that_died_during_an_outage_is_not_registered` |
//! | an expired session of 400 ms, of 2 s, 20 times each | the node is back in 0.5 s (p95), never two | `nerve/tests/sessions.rs` `an_expired_session_is_replaced_twenty_times`, `an_expired_longer_session_is_replaced_twenty_times` |
//! | a session that is silently another one, 3 times | one new node each, TERM in its deadline | `nerve/tests/sessions.rs` `a_session_that_is_silently_another_one_costs_one_new_node` |
//! | of two services with one payload one is drained, then down | two events of the registry each; the other's node stays | `nerve/tests/control.rs` `of_two_services_with_one_payload_one_is_drained` |
//! | 60 services at a limit of 40 descriptors | 0 withdrawals and 0 writes in 500 checks that could not run, TERM in its deadline | `nerve/tests/local` `too_few_descriptors_take_no_healthy_app_out` |
//! | a server that says `expired` at each write | one session and write at a time, ever more rarely, TERM in its deadline | `nerve/tests/servers` `sessions_that_do_not_last_are_opened_ever_more_rarely` |
//! | a full stderr that nobody reads; one whose reader has gone | 0 withdrawals and 0 writes, TERM in its deadline | `nerve/tests/local/logs.rs` |
//! | ZooKeeper 3.4.13 | one write for each node, TERM in its deadline | `synapse/tests/versions` `nerve_on_zookeeper_3_4` |
//! | a resolver that hangs; one that cannot tell | 0 withdrawals and 0 writes, TERM in its deadline | `nerve/tests/local` `a_resolver_that_does_not_answer_takes_no_healthy_app_out` |
//! | every connect of a check meets itself | no check passes, and the app has its port in 9 of 10 tries | `nerve/tests/local` `a_connection_that_met_itself_is_no_app_and_keeps_no_app_from_its_port` |
//! | **What servers bring along** | | |
//! | an added server whose agent never says `up`; a removed one whose agent says `ready`, `up ready 100%` | it gets requests at once; none | `agents::agents_say_what_they_like` |
//! | an operator's `set weight 0` and maint, over audits and a restart of synapse | no request until the operator's `ready` | the same |
//! | a server is added, returns, is released by an operator, while 30 clients wait for servers that take two at a time | it takes its share of the queue at once | `queues::a_server_takes_its_share_of_a_queue_on_every_way_in` |
//! | the address of a server's name changes meanwhile (in the short form while it is out) | the same | `queues::a_server_at_another_address_takes_its_share_of_a_queue` |
//! | **Takeover from Ruby's synapse** | | |
//! | a running haproxy with two servers in maint; a haproxy.cfg with two `disabled` ones, haproxy down | what is registered is served at once, what comes back later as well | `takeover::what_ruby_disabled_is_served` |
//! | **Frames and services that cannot start** | | |
//! | 11 of them (ports that are taken, addresses of other hosts, missing folders, limits, unknown lines; in extra sections, the shared frontend, `global`, a service), each introduced, tried 3 times more, with haproxy killed and synapse killed meanwhile | what is asked while a killed haproxy does not run yet fails, nothing else | `starts::what_cannot_start_costs_the_others_nothing` |
//! | **Disks** | | |
//! | haproxy.cfg, snapshot and nerve's state on a full disk; on a read-only one; a session is closed and synapse killed meanwhile | all that needs no reload goes on without the disks, and they follow when they can | `disks::disks_are_full_or_read_only` |
//! | full disk under all else that happens to haproxy | | `synapse/tests/soak` |
//! | **Boot and clocks** | | |
//! | boot with the ensemble blackholed; refused | the first request is answered in under 1 s (printed, asserted at ten times that) | `boot::a_host_boots_without_the_ensemble` |
//! | the wall clock set back or ahead by a day, with a `max_stale` of an hour | the same, from what is remembered; the other clocks cannot jump | the same |
//! | a snapshot that is corrupt, old, deleted | | `synapse/tests/end_to_end` `a_restart_with_nothing_changed_touches_nothing` |
//! | **Two ensembles** | | |
//! | either lost wholly and for good | new apps come in, unhealthy and stopped ones go | `ensembles::either_of_two_ensembles_is_lost_for_good` |
//! | one blackholed during a full replacement | nothing dead comes back through it | `synapse/tests/guard.rs` `a_full_replacement_through_one_ensemble_is_not_undone_by_the_blackholed_other` |
//! | **Losses in the registry** | | |
//! | 97 of 100 vanish and answer, at once or spread over the guard's window; synapse restarted meanwhile | all 100 serve until the hold's end, the same over restarts | `synapse/tests/hundred` `kept` |
//! | 97 of 100 vanish and are dead | out by their checks, then gone | `synapse/tests/hundred` `dead` |
//! | 97 withdrawn, 60 unhealthy, 3 vanish, the last one withdrawn, 100 replaced, a held address registered elsewhere | gone at once; the last one when its check fails; replaced; that address alone | `synapse/tests/hundred` `told` |
//! | the rest of the guard: release, shadow, an emptied path, unusable snapshots | | `synapse/tests/guard.rs` |
//!
//! Not run, by name: loss, reordering and duplication of packets (no netem in the kernel this was written on); a jump of the
//! machine's wall clock under running programs (a test may not set it).
//!
//! The network and the disks need root; without it, name the tests to run: `cargo test -p synapse --test faults -- members
//! proxies processes boot ensembles
//! reconnects starts agents queues takeover`. At most two stages run at a time: a member is a JVM.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![expect(clippy::print_stdout, reason = "printed rows are what this is for")]

#[path = "../rig/agent.rs"]
mod agent;
mod agents;
mod boot;
mod clocks;
#[path = "../soak/disk.rs"]
mod disk;
mod disks;
mod ensembles;
mod members;
mod network;
mod processes;
mod proxies;
mod queues;
mod reconnects;
#[path = "../rig/mod.rs"]
mod rig;
mod row;
mod stage;
mod starts;
mod takeover;

/// Stages at a time.
static STAGES: tokio::sync::Semaphore = tokio::sync::Semaphore::const_new(2);

/// Whether the long forms are wanted: `FAULTS=long`, as `make faults` has it.
fn long() -> bool {
    std::env::var("FAULTS").is_ok_and(|form| form == "long")
}
