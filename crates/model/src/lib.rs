//! The domain: types and pure decisions. No I/O, no clock, no async, no SQL, no proto.
