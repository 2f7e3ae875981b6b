//! The words of all rooms: a source and its children, a server, what a payload was. Types and what is true of them; no I/O.

pub mod member;
pub mod payload;
pub mod server;
pub mod sorted;
pub mod source;
pub mod text;
