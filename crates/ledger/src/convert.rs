//! Between the types of SQL and ours.
