//! Which servers each service should have. Each source goes through a guard (is this loss believed?) and the intake (several
//! sources become one), the funnel (defaults, filters, names) and the gate (may it be rendered at all?). Pure.

pub mod funnel;
pub mod gate;
pub mod guard;
pub mod intake;
pub mod keeper;
pub mod service;
