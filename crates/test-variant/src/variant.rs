use cluster_types::Variant;

/// The variant of this crate.
pub const VARIANT: Variant = Variant::TestKey;
