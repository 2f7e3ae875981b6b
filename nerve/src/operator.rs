//! What operators order: `drain`, `enable` and `disable`, and what of it outlives the process.

pub(crate) mod control;
pub(crate) mod recall;
