//! Files of a workspace that people edit.

#![no_main]

use std::path::Path;

use cluster_config::{ClusterConfig, ClusterState, MirrorSource, check_cluster_name};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let _ = ClusterConfig::parse(text, Path::new("/workspace")).map(|config| config.nodes());
    if let Ok(state) = ClusterState::parse(text) {
        assert!(ClusterState::parse(&state.to_yaml()).is_ok());
    }
    let _ = text.parse::<MirrorSource>();
    let _ = check_cluster_name(text.to_owned());
});
