//! The documents of `kubeadm.k8s.io/v1beta4`, `kubelet.config.k8s.io/v1beta1` and `kubeproxy.config.k8s.io/v1alpha1`, with
//! the fields we set.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;

use serde::Serialize;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Document<T> {
    pub(crate) api_version: &'static str,
    pub(crate) kind: &'static str,
    #[serde(flatten)]
    pub(crate) body: T,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct InitConfiguration<'a> {
    pub(crate) bootstrap_tokens: Vec<BootstrapTokenEntry<'a>>,
    pub(crate) node_registration: NodeRegistration,
    #[serde(rename = "localAPIEndpoint")]
    pub(crate) local_api_endpoint: LocalApiEndpoint,
    pub(crate) patches: Patches,
    pub(crate) timeouts: Timeouts,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct BootstrapTokenEntry<'a> {
    pub(crate) token: &'a str,
    pub(crate) ttl: &'static str,
    pub(crate) description: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct JoinConfiguration<'a> {
    pub(crate) discovery: Discovery<'a>,
    pub(crate) node_registration: NodeRegistration,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) control_plane: Option<JoinControlPlane>,
    pub(crate) patches: Patches,
    pub(crate) timeouts: Timeouts,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Discovery<'a> {
    pub(crate) file: FileDiscovery<'a>,
    pub(crate) tls_bootstrap_token: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FileDiscovery<'a> {
    pub(crate) kube_config_path: &'a Path,
}

/// The body of a kubeconfig that names an API server, and nobody who talks to it.
#[derive(Serialize)]
pub(crate) struct DiscoveryKubeconfig<'a> {
    pub(crate) clusters: [NamedCluster<'a>; 1],
}

#[derive(Serialize)]
pub(crate) struct NamedCluster<'a> {
    pub(crate) name: &'static str,
    pub(crate) cluster: Cluster<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Cluster<'a> {
    pub(crate) server: &'a str,
    /// PEM in base64.
    pub(crate) certificate_authority_data: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct JoinControlPlane {
    #[serde(rename = "localAPIEndpoint")]
    pub(crate) local_api_endpoint: LocalApiEndpoint,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LocalApiEndpoint {
    pub(crate) advertise_address: Ipv4Addr,
    pub(crate) bind_port: u16,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NodeRegistration {
    pub(crate) name: String,
    pub(crate) cri_socket: &'static str,
    pub(crate) image_pull_policy: &'static str,
    pub(crate) kubelet_extra_args: Vec<Argument>,
    pub(crate) ignore_preflight_errors: Vec<&'static str>,
}

/// The folder where kubeadm finds patches for the static pods.
#[derive(Serialize)]
pub(crate) struct Patches {
    pub(crate) directory: &'static str,
}

/// kubeadm's own time limits, in its spelling of durations.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Timeouts {
    pub(crate) control_plane_component_health_check: &'static str,
    pub(crate) kubelet_health_check: &'static str,
    #[serde(rename = "kubernetesAPICall")]
    pub(crate) kubernetes_api_call: &'static str,
    #[serde(rename = "etcdAPICall")]
    pub(crate) etcd_api_call: &'static str,
    pub(crate) tls_bootstrap: &'static str,
    pub(crate) discovery: &'static str,
}

/// Since v1beta4 a list, because an argument may be given more than once.
#[derive(Clone, Serialize)]
pub(crate) struct Argument {
    pub(crate) name: &'static str,
    pub(crate) value: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ClusterConfiguration {
    pub(crate) cluster_name: String,
    pub(crate) kubernetes_version: String,
    pub(crate) control_plane_endpoint: String,
    pub(crate) encryption_algorithm: &'static str,
    pub(crate) networking: Networking,
    pub(crate) api_server: ApiServer,
    pub(crate) controller_manager: Component,
    pub(crate) scheduler: Component,
    pub(crate) etcd: Etcd,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Networking {
    pub(crate) pod_subnet: String,
    pub(crate) service_subnet: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ApiServer {
    #[serde(rename = "certSANs")]
    pub(crate) cert_sans: Vec<String>,
    pub(crate) extra_args: Vec<Argument>,
    pub(crate) extra_volumes: Vec<HostPathMount>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Component {
    pub(crate) extra_args: Vec<Argument>,
}

#[derive(Serialize)]
pub(crate) struct Etcd {
    pub(crate) local: Component,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct HostPathMount {
    pub(crate) name: &'static str,
    pub(crate) host_path: &'static str,
    pub(crate) mount_path: &'static str,
    pub(crate) read_only: bool,
    pub(crate) path_type: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct KubeletConfiguration {
    pub(crate) authentication: Authentication,
    pub(crate) authorization: Authorization,
    pub(crate) cgroup_driver: &'static str,
    pub(crate) config_map_and_secret_change_detection_strategy: &'static str,
    #[serde(rename = "eventRecordQPS")]
    pub(crate) event_record_qps: u32,
    pub(crate) eviction_hard: BTreeMap<&'static str, &'static str>,
    pub(crate) kube_reserved: BTreeMap<&'static str, &'static str>,
    pub(crate) pod_pids_limit: u32,
    pub(crate) protect_kernel_defaults: bool,
    pub(crate) read_only_port: u16,
    pub(crate) rotate_certificates: bool,
    pub(crate) seccomp_default: bool,
    #[serde(rename = "serverTLSBootstrap")]
    pub(crate) server_tls_bootstrap: bool,
    pub(crate) static_pod_path: &'static str,
    pub(crate) streaming_connection_idle_timeout: &'static str,
    pub(crate) system_reserved: BTreeMap<&'static str, &'static str>,
    pub(crate) tls_min_version: &'static str,
    pub(crate) volume_plugin_dir: &'static str,
}

#[derive(Serialize)]
pub(crate) struct Authentication {
    pub(crate) anonymous: Enabled,
    pub(crate) webhook: Enabled,
}

#[derive(Serialize)]
pub(crate) struct Enabled {
    pub(crate) enabled: bool,
}

#[derive(Serialize)]
pub(crate) struct Authorization {
    pub(crate) mode: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct KubeProxyConfiguration {
    pub(crate) mode: &'static str,
    pub(crate) node_port_addresses: [&'static str; 1],
}
