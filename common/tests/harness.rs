//! The harness's own pieces, as far as nothing else would prove them.
