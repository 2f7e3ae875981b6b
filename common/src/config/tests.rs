use super::text::*;
