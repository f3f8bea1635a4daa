//! Automation: lab, test, ci, bench, tidy.

fn main() {}
