//! The guard at one hundred servers: real ZooKeeper, real haproxy with its checks, one hundred apps that answer, and clients
//! that never retry. `FAULTS=long` (as `make faults` has it) runs the long forms.
//!
//! Each row begins and ends with registry and haproxy in agreement. What must hold of every row but the ones of dead apps:
//! **no request fails**. Printed: requests, failed ones, fewest servers in rotation, times to what must happen.
//!
//! | What happens | What must hold | Test |
//! |---|---|---|
//! | 97 of 100 vanish while they answer; synapse is ended by TERM and by KILL and started again | 97 held, all 100 answer (the first ones lost may leave until there are too many: at most 50, and they come back); each time the same hold with the same end, nothing leaves, haproxy is adopted; out at the end | `kept::what_vanishes_while_it_answers_is_held_over_restarts_until_the_end` |
//! | 97 deletes over 0.1 s and 5 s (29 s in the long form), in a window of 30 s | one trip; every loss of the window is restored: 97 held, 100 answer; never fewer than 50 in rotation | `kept::deletes_spread_over_the_window_are_all_restored` |
//! | the same over 5 s, synapse killed in the midst of them | the same | the same |
//! | 97 have died, their nodes vanish later, as sessions outlive checks | nothing is lost by the registry's loss: 0 failed, gone from the table at once | `dead::what_vanishes_and_is_dead_leaves_by_its_checks` |
//! | 97 die and vanish at one moment | out of rotation by their checks, and then gone; requests fail until then, and none afterwards (see the module) | the same |
//! | the same with `observe layer4 error-limit 1 on-error mark-down` | each dead server costs one try: at most a quarter of 97, and what was under way | `dead::a_dead_server_costs_one_try_where_traffic_is_a_check` |
//! | 97 withdrawn, each by its own transaction | gone at once, no trip | `told::what_is_withdrawn_goes_at_once_but_the_last` |
//! | the last one withdrawn, with `use_previous_backends` | it stays and answers, until its check fails | the same |
//! | 60 of 100 unhealthy, withdrawn as such | gone at once, no trip | `told::the_unhealthy_and_a_few_losses_go_at_once` |
//! | 3 of 100 vanish | gone at once, no trip | the same |
//! | 100 of 100 replaced by other addresses, one by one at full speed | replaced, no trip, never fewer than 50 in rotation | `told::a_full_replacement_is_not_held` |
//! | 100 of 100 vanish and 100 others come afterwards | held until the last of them has come, then replaced | the same |
//! | a held address is registered by another watched service | that address alone leaves | `told::a_held_address_that_another_service_registers_leaves_alone` |

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![expect(clippy::print_stdout, reason = "printed rows are what this is for")]

mod dead;
#[path = "../instances/mod.rs"]
mod instances;
mod kept;
#[path = "../rig/mod.rs"]
mod rig;
mod stage;
mod told;

/// Whether the long forms are wanted: `FAULTS=long`, as `make faults` has it.
fn long() -> bool {
    std::env::var("FAULTS").is_ok_and(|form| form == "long")
}
