//! What benches measure, and how they print it.
//!
//! Every figure comes from one run on one machine: medians and percentiles in a [`Table`], and ratios wherever two things of
//! one run can be compared. Nothing here decides whether a figure is good. Nothing a release contains depends on this crate;
//! `xtask tidy` checks that.

mod clock;
mod samples;
mod table;

pub use clock::{Clock, processor_time};
pub use samples::{Samples, WARM_UP};
pub use table::{Table, mebibytes, rate, time};
