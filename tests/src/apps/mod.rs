//! Other model servers for the tests of the sidecar: real ones where they can be had, and stand-ins.

pub mod standins;
