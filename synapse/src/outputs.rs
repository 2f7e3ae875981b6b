//! What is made of what is wanted.

pub mod haproxy;
