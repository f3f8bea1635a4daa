//! Generates the gRPC code from `proto/` without protoc.

use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto");
    println!("cargo:rerun-if-changed={}", root.display());
    let files = [
        "inventory",
        "placement",
        "migration",
        "maintenance",
        "agent",
    ]
    .map(|area| root.join(format!("godwit/{area}/v1/{area}.proto")));
    let descriptors = protox::compile(files, [&root])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?).join("godwit.bin");
    std::fs::write(out, prost::Message::encode_to_vec(&descriptors))?;
    tonic_prost_build::configure()
        // Shown by hand, without what may be secret.
        .skip_debug([".godwit.agent.v1.SeedContent", ".godwit.agent.v1.CopyKey"])
        .compile_fds(descriptors)?;
    Ok(())
}
