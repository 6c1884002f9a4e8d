//! Compiles the `.proto` sources without protoc.

fn main() -> anyhow::Result<()> {
    let sources = [
        "attestation.proto",
        "join.proto",
        "kms.proto",
        "verify.proto",
        "init.proto",
        "recover.proto",
    ];
    let descriptors = protox::compile(sources, ["proto"])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    println!("cargo:rerun-if-changed=proto");
    Ok(())
}
