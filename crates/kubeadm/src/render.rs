use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use cluster_types::NodeRole;
use pem::{EncodeConfig, LineEnding, Pem};
use serde::Serialize;
use zeroize::Zeroizing;

use crate::config::{
    ApiServer, Argument, Authentication, Authorization, BootstrapTokenEntry, Cluster, ClusterConfiguration, Component,
    Discovery, DiscoveryKubeconfig, Document, Enabled, Etcd, FileDiscovery, HostPathMount, InitConfiguration,
    JoinConfiguration, JoinControlPlane, KubeProxyConfiguration, KubeletConfiguration, LocalApiEndpoint, NamedCluster,
    Networking, NodeRegistration, Patches, Timeouts,
};
use crate::{BootstrapToken, ClusterSettings, Folders, JoinSettings, NodeSettings, ProxyMode};

const KUBEADM: &str = "kubeadm.k8s.io/v1beta4";
pub(crate) const API_PORT: u16 = 6443;
/// kubeadm and kubelet would create this folder below `/usr`, which is read-only.
const VOLUME_PLUGINS: &str = "/opt/libexec/kubernetes/kubelet-plugins/volume/exec/";
const AUDIT_LOG_FOLDER: &str = "/var/log/kubernetes/audit/";
const PATCHES: Patches = Patches {
    directory: Folders::PATCHES,
};

/// kubeadm's checks that cannot succeed on our image, and why nothing is lost.
const IGNORED_PREFLIGHT: [&str; 2] = [
    // Reads the kernel's build configuration, which the image does not carry. Which kernel runs is measured.
    "SystemVerification",
    // kubeadm wants coreutils' cp for upgrades, and the image does not have it.
    "FileExisting-cp",
];

/// The audit policy: who did what, without bodies, because bodies hold secrets.
pub(crate) const AUDIT_POLICY: &str = "\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages:
  - RequestReceived
rules:
  - level: Metadata
";

/// What the API server lets into a cluster besides what RBAC allows (`docs/hardening.md`): Pod Security `baseline` everywhere, except
/// in Kubernetes' own namespace, and a warning for what is not `restricted`. A namespace can ask for another level by its labels.
pub const ADMISSION: &str = "\
apiVersion: apiserver.config.k8s.io/v1
kind: AdmissionConfiguration
plugins:
  - name: PodSecurity
    configuration:
      apiVersion: pod-security.admission.config.k8s.io/v1
      kind: PodSecurityConfiguration
      defaults:
        enforce: baseline
        enforce-version: latest
        audit: restricted
        audit-version: latest
        warn: restricted
        warn-version: latest
      exemptions:
        namespaces:
          - kube-system
";

/// Admission plugins that are not on by default. `NodeRestriction` is kubeadm's choice too. A Service with external addresses could
/// take the address of the API server on every node.
pub const ADMISSION_PLUGINS: &str = "NodeRestriction,DenyServiceExternalIPs";

/// The static pods of a control plane.
pub(crate) const STATIC_PODS: [&str; 4] = ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"];

/// A strategic merge patch for this component's static pod, which probes it less often and bears failures for longer.
///
/// - kubeadm would probe readiness every second, each time over a new connection. That costs an emulated machine a tenth of a
///   processor, and no Service waits for the answer.
/// - A component that is alive but slow must not be killed, because starting it again makes everything slower: with kubeadm's limit of
///   80 seconds, two machines that share two processors lost API server and etcd again and again. Now kubelet waits five minutes.
/// - The API server is not killed for what etcd does.
pub(crate) fn probe_patch(component: &str) -> String {
    let mut patch = format!(
        "\
spec:
  containers:
    - name: {component}
      livenessProbe:
        failureThreshold: 30
"
    );
    if component == "kube-apiserver" {
        patch += "        httpGet:\n          path: /livez?exclude=etcd\n";
    }
    // It has no readiness probe, and a probe needs more than a period.
    if component != "kube-controller-manager" {
        patch += "      readinessProbe:\n        periodSeconds: 10\n";
    }
    patch
}

/// The configuration of `kubeadm init`, four documents.
pub(crate) fn init(cluster: &ClusterSettings, node: &NodeSettings, token: &BootstrapToken) -> Zeroizing<String> {
    documents(&[
        &kubeadm_document("InitConfiguration", init_configuration(node, token)),
        &kubeadm_document("ClusterConfiguration", cluster_configuration(cluster, node)),
        &Document {
            api_version: "kubelet.config.k8s.io/v1beta1",
            kind: "KubeletConfiguration",
            body: kubelet_configuration(),
        },
        &Document {
            api_version: "kubeproxy.config.k8s.io/v1alpha1",
            kind: "KubeProxyConfiguration",
            body: kube_proxy_configuration(cluster.proxy),
        },
    ])
}

/// By what kubeadm knows the API server when it joins. Given a digest of the CA's key instead, it would read the CA from
/// `kube-public/cluster-info`, and trust a whole bundle if one of its certificates had that digest.
pub(crate) fn discovery(join: &JoinSettings) -> Zeroizing<String> {
    let certificate = Pem::new("CERTIFICATE", join.cluster_ca.as_ref());
    let pem = pem::encode_config(&certificate, EncodeConfig::new().set_line_ending(LineEnding::LF));
    documents(&[&Document {
        api_version: "v1",
        kind: "Config",
        body: DiscoveryKubeconfig {
            clusters: [NamedCluster {
                // kubeadm takes the cluster without a name; one with a name would need a context and a user.
                name: "",
                cluster: Cluster {
                    server: &format!("https://{}", join.endpoint),
                    certificate_authority_data: &BASE64.encode(pem),
                },
            }],
        },
    }])
}

/// The configuration of `kubeadm join`, with the path of [`discovery`]. Whatever is the same for all nodes comes from the cluster.
pub(crate) fn join(join: &JoinSettings, node: &NodeSettings, discovery: &Path) -> Zeroizing<String> {
    let body = JoinConfiguration {
        discovery: Discovery {
            file: FileDiscovery {
                kube_config_path: discovery,
            },
            tls_bootstrap_token: join.token.expose(),
        },
        node_registration: node_registration(node),
        control_plane: (join.role == NodeRole::ControlPlane).then(|| JoinControlPlane {
            local_api_endpoint: local_api_endpoint(node.address),
        }),
        patches: PATCHES,
        timeouts: timeouts(),
    };
    documents(&[&kubeadm_document("JoinConfiguration", body)])
}

/// Types without the trait's generics, so that documents of several types fit into one list.
trait Render {
    fn render(&self) -> Zeroizing<String>;
}

impl<T: Serialize> Render for Document<T> {
    fn render(&self) -> Zeroizing<String> {
        Zeroizing::new(serde_saphyr::to_string(self).expect("documents have text keys and plain values"))
    }
}

fn documents(documents: &[&dyn Render]) -> Zeroizing<String> {
    let rendered: Vec<_> = documents.iter().map(|document| document.render()).collect();
    let parts: Vec<&str> = rendered.iter().map(|text| text.trim_end()).collect();
    Zeroizing::new(parts.join("\n---\n") + "\n")
}

fn kubeadm_document<T>(kind: &'static str, body: T) -> Document<T> {
    Document {
        api_version: KUBEADM,
        kind,
        body,
    }
}

fn init_configuration<'a>(node: &NodeSettings, token: &'a BootstrapToken) -> InitConfiguration<'a> {
    InitConfiguration {
        // Without a token here, kubeadm creates one that lives a day; if the phase is skipped, it also skips the roles for joining
        // nodes. This one is not used: the join service creates one for each ticket.
        bootstrap_tokens: vec![BootstrapTokenEntry {
            token: token.expose(),
            ttl: "1m0s",
            description: "unused; join-service creates one for each node",
        }],
        node_registration: node_registration(node),
        local_api_endpoint: local_api_endpoint(node.address),
        patches: PATCHES,
        timeouts: timeouts(),
    }
}

fn node_registration(node: &NodeSettings) -> NodeRegistration {
    NodeRegistration {
        name: node.name.to_string(),
        cri_socket: "unix:///run/containerd/containerd.sock",
        // Images were imported after their hashes were checked. A registry would be another source, without a check.
        image_pull_policy: "Never",
        kubelet_extra_args: vec![
            // A quarter of an idle kubelet's time goes into reading every container's control groups, by default every ten seconds.
            argument("housekeeping-interval", "30s"),
            argument("node-ip", node.address.to_string()),
            argument("provider-id", node.provider_id.clone()),
        ],
        ignore_preflight_errors: IGNORED_PREFLIGHT.to_vec(),
    }
}

fn local_api_endpoint(address: Ipv4Addr) -> LocalApiEndpoint {
    LocalApiEndpoint {
        advertise_address: address,
        bind_port: API_PORT,
    }
}

/// Generous, because machines without hardware virtualisation are slow; our own limit stops a node that hangs.
fn timeouts() -> Timeouts {
    Timeouts {
        control_plane_component_health_check: "10m0s",
        kubelet_health_check: "8m0s",
        // The first call waits until the API server has started.
        kubernetes_api_call: "10m0s",
        etcd_api_call: "5m0s",
        tls_bootstrap: "8m0s",
        discovery: "5m0s",
    }
}

fn cluster_configuration(cluster: &ClusterSettings, node: &NodeSettings) -> ClusterConfiguration {
    ClusterConfiguration {
        cluster_name: cluster.name.to_string(),
        kubernetes_version: cluster.version.to_string(),
        control_plane_endpoint: cluster.endpoint.to_string(),
        // A dozen RSA keys take most of a minute on an emulated machine.
        encryption_algorithm: "ECDSA-P256",
        networking: Networking {
            pod_subnet: cluster.pods.to_string(),
            service_subnet: cluster.services.to_string(),
        },
        api_server: api_server(cluster, node),
        controller_manager: Component {
            extra_args: [
                argument("flex-volume-plugin-dir", VOLUME_PLUGINS),
                argument("profiling", "false"),
                argument("terminated-pod-gc-threshold", "1000"),
                argument("tls-min-version", "VersionTLS13"),
            ]
            .into_iter()
            .chain(signers())
            .chain(patient_leader())
            .collect(),
        },
        scheduler: Component {
            extra_args: [
                argument("profiling", "false"),
                argument("tls-min-version", "VersionTLS13"),
            ]
            .into_iter()
            .chain(patient_leader())
            .collect(),
        },
        etcd: Etcd {
            local: Component {
                extra_args: vec![
                    // Milliseconds. With the default of a second, members on slow or busy machines elect leaders without need.
                    argument("election-timeout", "5000"),
                    argument("heartbeat-interval", "500"),
                    argument("tls-min-version", "TLS1.3"),
                ],
            },
        },
    }
}

/// Which authority signs what the join service or an administrator has approved, and for how long. Kubelets renew theirs by themselves,
/// as long as the join service approves it. Kubernetes takes these only if kubeadm's one pair for all signers is not there.
fn signers() -> [Argument; 9] {
    [
        argument("cluster-signing-cert-file", ""),
        argument("cluster-signing-key-file", ""),
        argument("cluster-signing-duration", "72h0m0s"),
        argument("cluster-signing-kube-apiserver-client-cert-file", Folders::CA_CERT),
        argument("cluster-signing-kube-apiserver-client-key-file", Folders::CA_KEY),
        argument("cluster-signing-kubelet-client-cert-file", Folders::CA_CERT),
        argument("cluster-signing-kubelet-client-key-file", Folders::CA_KEY),
        argument("cluster-signing-kubelet-serving-cert-file", Folders::KUBELET_CA_CERT),
        argument("cluster-signing-kubelet-serving-key-file", Folders::KUBELET_CA_KEY),
    ]
}

/// With the default of 15 seconds, a slow machine's controllers exit because they could not renew in time, and starting them
/// again makes the machine slower. The price is up to a minute without controllers when a control plane is lost.
fn patient_leader() -> [Argument; 3] {
    [
        argument("leader-elect-lease-duration", "60s"),
        argument("leader-elect-renew-deadline", "40s"),
        argument("leader-elect-retry-period", "5s"),
    ]
}

fn api_server(cluster: &ClusterSettings, node: &NodeSettings) -> ApiServer {
    let endpoint = *cluster.endpoint.ip();
    // The host reaches the API server through a forwarded port on its own loopback.
    let mut cert_sans = vec![Ipv4Addr::LOCALHOST.to_string(), node.address.to_string()];
    cert_sans.push(endpoint.to_string());
    cert_sans.extend(cluster.cert_sans.iter().map(ToString::to_string));
    let mut seen = std::collections::BTreeSet::new();
    cert_sans.retain(|san| seen.insert(san.clone()));
    ApiServer {
        cert_sans,
        extra_args: vec![
            argument("admission-control-config-file", Folders::ADMISSION),
            argument("audit-log-maxage", "30"),
            argument("audit-log-maxbackup", "10"),
            argument("audit-log-maxsize", "100"),
            argument("audit-log-path", "/var/log/kubernetes/audit/audit.log"),
            argument("audit-policy-file", Folders::AUDIT_POLICY),
            argument("enable-admission-plugins", ADMISSION_PLUGINS),
            argument("kubelet-certificate-authority", Folders::KUBELET_CA_CERT),
            argument("profiling", "false"),
            argument("tls-min-version", "VersionTLS13"),
        ],
        extra_volumes: vec![
            HostPathMount {
                name: "admission",
                host_path: Folders::ADMISSION,
                mount_path: Folders::ADMISSION,
                read_only: true,
                path_type: "File",
            },
            HostPathMount {
                name: "audit-log",
                host_path: AUDIT_LOG_FOLDER,
                mount_path: AUDIT_LOG_FOLDER,
                read_only: false,
                path_type: "DirectoryOrCreate",
            },
            HostPathMount {
                name: "audit-policy",
                host_path: Folders::AUDIT_POLICY,
                mount_path: Folders::AUDIT_POLICY,
                read_only: true,
                path_type: "File",
            },
        ],
    }
}

/// kubeadm stores it in the cluster, so it applies to every node.
fn kubelet_configuration() -> KubeletConfiguration {
    KubeletConfiguration {
        authentication: Authentication {
            anonymous: Enabled { enabled: false },
            webhook: Enabled { enabled: true },
        },
        authorization: Authorization { mode: "Webhook" },
        cgroup_driver: "systemd",
        // Objects are fetched when they are needed: when a pod starts, and then every minute. The other strategies know an object only
        // once its pod has a network; until then each attempt to mount it fails and doubles the wait before the next.
        config_map_and_secret_change_detection_strategy: "Get",
        event_record_qps: 50,
        eviction_hard: BTreeMap::from([
            ("memory.available", "100Mi"),
            ("nodefs.available", "5%"),
            ("nodefs.inodesFree", "5%"),
            ("imagefs.available", "5%"),
        ]),
        kube_reserved: BTreeMap::from([("cpu", "100m"), ("memory", "128Mi"), ("ephemeral-storage", "512Mi")]),
        pod_pids_limit: 4096,
        protect_kernel_defaults: true,
        read_only_port: 0,
        rotate_certificates: true,
        seccomp_default: true,
        server_tls_bootstrap: true,
        static_pod_path: "/etc/kubernetes/manifests",
        streaming_connection_idle_timeout: "30m0s",
        system_reserved: BTreeMap::from([("cpu", "100m"), ("memory", "192Mi"), ("ephemeral-storage", "512Mi")]),
        // Go chooses the cipher suites of TLS 1.3 itself and would ignore a list.
        tls_min_version: "VersionTLS13",
        volume_plugin_dir: VOLUME_PLUGINS,
    }
}

fn kube_proxy_configuration(mode: ProxyMode) -> KubeProxyConfiguration {
    KubeProxyConfiguration {
        mode: match mode {
            ProxyMode::Nftables => "nftables",
            ProxyMode::Iptables => "iptables",
        },
        // With nftables the default is only the node's own address, but the operator's connections arrive over the uplink.
        node_port_addresses: ["0.0.0.0/0"],
    }
}

fn argument(name: &'static str, value: impl Into<String>) -> Argument {
    Argument {
        name,
        value: value.into(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::net::SocketAddrV4;

    use cluster_types::Cidr;

    use super::*;

    pub(crate) fn cluster() -> ClusterSettings {
        ClusterSettings {
            name: "mini".parse().unwrap(),
            version: "v1.35.4".parse().unwrap(),
            endpoint: SocketAddrV4::new([10, 42, 1, 100].into(), 6443),
            cert_sans: vec!["api.example.com".parse().unwrap(), "127.0.0.1".parse().unwrap()],
            pods: Cidr::PODS,
            services: Cidr::SERVICES,
            proxy: ProxyMode::Nftables,
        }
    }

    pub(crate) fn node() -> NodeSettings {
        NodeSettings {
            name: "control-plane-0".parse().unwrap(),
            address: Ipv4Addr::new(10, 42, 1, 100),
            provider_id: "qemu:///control-plane-0".into(),
        }
    }

    pub(crate) fn join_settings(role: NodeRole) -> JoinSettings {
        JoinSettings {
            role,
            endpoint: "10.42.1.100:6443".parse().unwrap(),
            token: "abcdef.0123456789abcdef".parse().unwrap(),
            cluster_ca: b"certificate".to_vec().into(),
        }
    }

    const DISCOVERY: &str = "/run/constellation/kubeadm-discovery.yaml";

    #[test]
    fn init_configuration_is_hardened() {
        let token = "abcdef.0123456789abcdef".parse().unwrap();
        insta::assert_snapshot!(init(&cluster(), &node(), &token).as_str());
    }

    #[test]
    fn worker_joins_with_a_token() {
        insta::assert_snapshot!(join(&join_settings(NodeRole::Worker), &node(), DISCOVERY.as_ref()).as_str());
    }

    #[test]
    fn one_ca_is_trusted() {
        insta::assert_snapshot!(discovery(&join_settings(NodeRole::Worker)).as_str());
    }

    #[test]
    fn control_plane_announces_its_own_address() {
        insta::assert_snapshot!(join(&join_settings(NodeRole::ControlPlane), &node(), DISCOVERY.as_ref()).as_str());
    }

    #[test]
    fn probe_patches_are_as_kubeadm_takes_them() {
        insta::assert_snapshot!(STATIC_PODS.map(probe_patch).join("---\n"));
    }

    #[test]
    fn audit_policy_is_yaml() {
        #[derive(serde::Deserialize)]
        struct Policy {
            kind: String,
        }
        let policy: Policy = serde_saphyr::from_str(AUDIT_POLICY).unwrap();
        assert_eq!(policy.kind, "Policy");
    }
}
