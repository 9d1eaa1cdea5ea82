//! What can be found out about guests and hosts. Called by `machine` and `cli`; runs nothing.

pub mod doctor;
