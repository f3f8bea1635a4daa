//! Generated gRPC code, conversions to and from the model, client and server builders.
