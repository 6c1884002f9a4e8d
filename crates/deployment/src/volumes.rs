use k8s_openapi::api::core::v1::{HostPathVolumeSource, Volume};

/// A file or folder of the node. The kind is Kubernetes' `hostPath.type`.
pub(crate) fn host_path(name: &str, path: &str, kind: &str) -> Volume {
    let source = HostPathVolumeSource {
        path: path.into(),
        type_: Some(kind.into()),
    };
    Volume {
        name: name.into(),
        host_path: Some(source),
        ..Volume::default()
    }
}
