//! The test harness: real ZooKeeper, real haproxy, a tiny app, a TCP proxy, a steady client and the real programs.
//! Integration tests, the demo and the benchmarks use it; the programs never do (feature `testing`).
//!
//! Its rules: a missing server program is a failure with an install hint, never a skip; nothing has a fixed port;
//! whatever was started is ended by its own process group id; waiting is [`eventually`], never a sleep. A failure of
//! the harness is a panic that says what to do: its callers are tests.

#![expect(
    clippy::print_stderr,
    reason = "a test's stderr is where its failure is read"
)]

mod app;
mod counter;
mod haproxy;
pub mod house;
mod names;
mod network;
mod operations;
mod program;
mod proxy;
mod relay;
mod rewriting;
mod server;
mod session;
mod steady;
mod stub;
mod traffic;
mod unread;
mod wait;
mod zookeeper;

pub use self::app::{App, AppState, Behaviour, serve_app};
pub use self::haproxy::Haproxy;
pub use self::names::{NameServer, Temper};
pub use self::network::{Host, Network, Partition};
pub use self::program::{Program, get};
pub use self::proxy::{Cut, Mode, TcpProxy};
pub use self::relay::{read_frame, relay, reply, request_header};
pub use self::rewriting::{Fate, Request, rewriting};
pub use self::server::{Dir, Process, find_program, free_port};
pub use self::session::{SessionKey, close_session};
pub use self::steady::{Load, SteadyClient, Tally};
pub use self::stub::Stub;
pub use self::traffic::{Failure, Style, Traffic, ask_once};
pub use self::unread::Unread;
pub use self::wait::eventually;
pub use self::zookeeper::{Options, ZooKeeper};
pub use crate::http::Reply;
