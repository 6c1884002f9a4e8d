//! What users do with a cluster, and what its host sees of it.

use anyhow::{Context, Result, ensure};
use e2e::{Cluster, Image, PROBE_IMAGE, Packet};
use serde_json::{Value, json};

pub(crate) const CONTROL_PLANE: &str = "control-plane-0";
pub(crate) const WORKER: &str = "worker-0";

/// Occurs nowhere else.
const MARKER: &str = "plaintext-of-a-pod-0d5f1c";
/// Whose pods may do everything on their node.
pub(crate) const PRIVILEGED: &str = "privileged";
/// Where [`socket_thief`] listens.
pub(crate) const THIEFS_PORT: u16 = 9000;
/// Its pods have no token.
const DEPLOYED_ACCOUNT: &str = "serviceaccount/verification-service";
const DEPLOYED_SERVICE: &str = "service/verification-service";
/// Addresses of pods.
const PODS: [u8; 2] = [10, 244];

pub(crate) fn every_node_is_ready_and_every_pod_runs(cluster: &Cluster, _: &Image) -> Result<()> {
    let nodes = list(cluster, &["nodes"])?;
    ensure!(nodes.len() == 2, "{} nodes", nodes.len());
    pods_run(cluster, "--all-namespaces")
}

/// Of one namespace, or of all.
pub(crate) fn pods_run(cluster: &Cluster, namespace: &str) -> Result<()> {
    cluster.wait_until("every pod to run", || {
        let pods = list(cluster, &["pods", namespace])?;
        let waiting: Vec<_> = pods.iter().filter(|pod| !is_ready(pod)).map(name).collect();
        ensure!(waiting.is_empty(), "not ready: {}", waiting.join(", "));
        Ok(true)
    })
}

/// kubeadm took our changes to its static pods.
pub(crate) fn the_control_plane_is_not_asked_every_second(cluster: &Cluster, _: &Image) -> Result<()> {
    let pods = list(
        cluster,
        &["pods", "--namespace", "kube-system", "--selector", "tier=control-plane"],
    )?;
    let probes: Vec<_> = pods
        .iter()
        .map(|pod| &pod["spec"]["containers"][0]["readinessProbe"])
        .filter(|probe| !probe.is_null())
        .collect();
    ensure!(
        probes.len() == 3 && probes.iter().all(|probe| probe["periodSeconds"] == 10),
        "{probes:?}"
    );
    Ok(())
}

/// It would read the master secret from the control plane's disk.
pub(crate) fn a_pod_that_reaches_the_host_is_refused(cluster: &Cluster, _: &Image) -> Result<()> {
    let mut reader = pod("reader", CONTROL_PLANE, &["serve", "--text", "reader"]);
    reader["spec"]["volumes"] = json!([{ "name": "state", "hostPath": { "path": "/run/state" } }]);
    let refusal = cluster
        .create(&reader)
        .err()
        .context("the pod was created")?
        .to_string();
    ensure!(
        refusal.contains("violates PodSecurity \"baseline:latest\""),
        "{refusal}"
    );
    Ok(())
}

pub(crate) fn every_node_is_verified(cluster: &Cluster, _: &Image) -> Result<()> {
    let text = cluster.constellation(["verify"])?;
    let first = text.lines().next().unwrap_or_default();
    ensure!(first.contains("emulated by the host"), "the first line is {first:?}");
    let report: Value = serde_json::from_str(&cluster.constellation(["verify", "--output", "json"])?)?;
    let nodes = report["nodes"].as_array().context("no nodes")?;
    ensure!(
        nodes.len() == 2 && nodes.iter().all(|node| node["verdict"] == "affirming"),
        "{report}"
    );
    let status = cluster.constellation(["status"])?;
    ensure!(status.matches("Ready v1.").count() == 2, "{status}");
    Ok(())
}

/// Two replicas on two nodes behind a Service, asked by name from a third pod until both have answered.
pub(crate) fn a_service_answers_from_both_nodes_by_its_name(cluster: &Cluster, _: &Image) -> Result<()> {
    cluster.create(&deployment())?;
    cluster.create(&service())?;
    cluster.create(&pod("client", WORKER, &["serve", "--text", "client"]))?;
    cluster.wait_until("the replicas and the client", || {
        let pods = list(cluster, &["pods"])?;
        Ok(pods.len() == 3 && pods.iter().all(is_ready))
    })?;
    let (mut here, mut there) = (false, false);
    cluster.wait_until("answers from both nodes", || {
        let answer = cluster.probe("client", &["fetch", "http://web.default.svc.cluster.local/"])?;
        here |= answer.contains(WORKER);
        there |= answer.contains(CONTROL_PLANE);
        Ok(here && there)
    })
}

pub(crate) fn pod_traffic_between_nodes_is_encrypted(cluster: &Cluster, _: &Image) -> Result<()> {
    let capture = cluster.capture()?;
    let load = cluster.probe("client", &["fetch", &load_of_the_other_node(cluster)?])?;
    let packets = capture.stop()?;
    ensure!(load.contains(MARKER), "the transfer did not work");
    must_hold_no_plaintext(&packets)?;
    let encrypted: usize = packets
        .iter()
        .filter(|packet| packet.is_wireguard())
        .map(|packet| packet.bytes().len())
        .sum();
    ensure!(
        encrypted > load.len(),
        "{} bytes were transferred, {encrypted} bytes of WireGuard seen",
        load.len()
    );
    Ok(())
}

/// On emulated machines, pods inherit from node-init that their timers may be late, so that they cost less. Elsewhere they are as exact as on any machine.
pub(crate) fn timers_of_pods_are_late_where_they_are_emulated(cluster: &Cluster, _: &Image) -> Result<()> {
    let expected = if cluster.has_process_with("-accel tcg")? {
        "20000000"
    } else {
        "50000"
    };
    let slack = cluster.probe("client", &["read", "/proc/self/timerslack_ns"])?;
    ensure!(slack.trim() == expected, "{slack} ns, expected {expected}");
    Ok(())
}

/// `kubeadm init` gives the first node's kubelet a certificate in its kubeconfig, which we replace by the kubelet's own file.
pub(crate) fn a_kubelet_that_starts_again_authenticates(cluster: &Cluster, _: &Image) -> Result<()> {
    let metrics = format!("/api/v1/nodes/{CONTROL_PLANE}/proxy/metrics");
    let started = || {
        let metrics = cluster.kubectl(["get", "--raw", &metrics])?;
        let mut lines = metrics.lines();
        let start = lines.find_map(|line| line.strip_prefix("process_start_time_seconds "));
        start.map(str::to_owned).context("no time of the start")
    };
    let renewed = || {
        let lease = get(cluster, &["lease", "--namespace", "kube-node-lease", CONTROL_PLANE])?;
        let time = lease["spec"]["renewTime"].as_str();
        time.map(str::to_owned).context("the lease was never renewed")
    };
    let before = started()?;
    cluster.create(&killer())?;
    cluster.wait_until("the kubelet to start again", || Ok(started()? != before))?;
    let last = renewed()?;
    cluster.wait_until("its next lease", || Ok(renewed()? != last))?;
    cluster
        .kubectl(["delete", "pod", "--namespace", PRIVILEGED, "killer"])
        .map(drop)
}

/// The tunnel's device of the worker is switched off by a pod that may do everything. Last, because what it breaks is mended
/// only by starting flannel again.
pub(crate) fn with_the_tunnel_down_nothing_leaks(cluster: &Cluster, _: &Image) -> Result<()> {
    let url = load_of_the_other_node(cluster)?;
    cluster.create(&breaker())?;
    wait_until_ready(cluster, "breaker")?;
    set_tunnel(cluster, "0x90")?;
    let capture = cluster.capture()?;
    let transfer = cluster.probe("client", &["fetch", &url]);
    let packets = capture.stop()?;
    let error = transfer.err().context("the transfer went on")?;
    let unreachable = format!("{error:#}").contains("error sending request");
    ensure!(unreachable, "the transfer failed for another reason: {error:#}");
    must_hold_no_plaintext(&packets)?;

    set_tunnel(cluster, "0x91")?;
    let on_worker = format!("--field-selector=spec.nodeName={WORKER}");
    cluster.kubectl([
        "delete",
        "pod",
        "--namespace",
        "kube-system",
        "--selector",
        "k8s-app=flannel",
        &on_worker,
    ])?;
    cluster.wait_until("the tunnel to come back", || {
        Ok(cluster.probe("client", &["fetch", &url])?.contains(MARKER))
    })
}

/// Waits for a pod of the privileged namespace.
pub(crate) fn wait_until_ready(cluster: &Cluster, pod: &str) -> Result<()> {
    cluster.wait_until(pod, || {
        Ok(is_ready(&get(cluster, &["pod", "--namespace", PRIVILEGED, pod])?))
    })
}

fn set_tunnel(cluster: &Cluster, flags: &str) -> Result<()> {
    cluster
        .probe_in(
            PRIVILEGED,
            "breaker",
            &["write", "/sys/class/net/flannel-wg/flags", flags],
        )
        .map(drop)
}

fn must_hold_no_plaintext(packets: &[Packet]) -> Result<()> {
    for packet in packets {
        let marked = memchr::memmem::find(packet.bytes(), MARKER.as_bytes()).is_some();
        ensure!(
            !marked,
            "a packet between {:?} holds the pod's text",
            packet.addresses()
        );
        let addresses = packet.addresses().into_iter().flatten();
        let pods: Vec<_> = addresses.filter(|address| address.octets()[..2] == PODS).collect();
        ensure!(pods.is_empty(), "a packet outside the tunnel is from or for {pods:?}");
    }
    Ok(())
}

/// Where the replica on the control plane serves its long answer. The client is on the worker.
fn load_of_the_other_node(cluster: &Cluster) -> Result<String> {
    let on_control_plane = format!("--field-selector=spec.nodeName={CONTROL_PLANE}");
    let pods = list(cluster, &["pods", "--selector", "app=web", &on_control_plane])?;
    let pod = pods.first().context("no replica on the control plane")?;
    let address = pod["status"]["podIP"].as_str().context("it has no address")?;
    Ok(format!("http://{address}:8080/load"))
}

fn list(cluster: &Cluster, what: &[&str]) -> Result<Vec<Value>> {
    Ok(get(cluster, what)?["items"].as_array().cloned().unwrap_or_default())
}

pub(crate) fn get(cluster: &Cluster, what: &[&str]) -> Result<Value> {
    let json = cluster.kubectl(["get", "--output", "json"].iter().chain(what))?;
    Ok(serde_json::from_str(&json)?)
}

fn name(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap_or_default().to_owned()
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    let is_ready = |condition: &Value| condition["type"] == "Ready" && condition["status"] == "True";
    pod["status"]["phase"] == "Running" && conditions.is_some_and(|conditions| conditions.iter().any(is_ready))
}

fn container(arguments: &[&str]) -> Value {
    json!({ "name": "probe", "image": PROBE_IMAGE, "imagePullPolicy": "Never", "args": arguments })
}

fn deployment() -> Value {
    let labels = json!({ "app": "web" });
    let mut server = container(&["serve", "--text", &format!("$(NODE) {MARKER}")]);
    server["env"] = json!([{ "name": "NODE", "valueFrom": { "fieldRef": { "fieldPath": "spec.nodeName" } } }]);
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": { "name": "web" },
        "spec": {
            "replicas": 2,
            "selector": { "matchLabels": labels },
            "template": {
                "metadata": { "labels": labels },
                "spec": {
                    "containers": [server],
                    "tolerations": [{ "operator": "Exists" }],
                    "topologySpreadConstraints": [{
                        "maxSkew": 1,
                        "topologyKey": "kubernetes.io/hostname",
                        "whenUnsatisfiable": "DoNotSchedule",
                        "labelSelector": { "matchLabels": labels },
                        // Both nodes count, the tainted control plane too.
                        "nodeTaintsPolicy": "Ignore",
                    }],
                },
            },
        },
    })
}

fn service() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": "web" },
        "spec": { "selector": { "app": "web" }, "ports": [{ "port": 80, "targetPort": 8080 }] },
    })
}

pub(crate) fn pod(name: &str, node: &str, arguments: &[&str]) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name },
        "spec": { "nodeName": node, "containers": [container(arguments)] },
    })
}

/// As `docs/hardening.md` says how.
pub(crate) fn privileged_namespace() -> Value {
    let labels = json!({ "pod-security.kubernetes.io/enforce": "privileged" });
    json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": PRIVILEGED, "labels": labels } })
}

/// May do everything on the worker, in its own network.
fn breaker() -> Value {
    let mut pod = pod("breaker", WORKER, &["serve", "--text", "breaker", "--port", "18080"]);
    pod["metadata"]["namespace"] = json!(PRIVILEGED);
    pod["spec"]["hostNetwork"] = json!(true);
    pod["spec"]["containers"][0]["securityContext"] = json!({ "privileged": true });
    pod
}

/// Forwards whoever reaches it to the socket in a folder of the control plane.
pub(crate) fn socket_thief(name: &str, folder: &str) -> Value {
    let port = THIEFS_PORT.to_string();
    let mut pod = pod(
        name,
        CONTROL_PLANE,
        &["forward", "--port", &port, "--to", "/stolen/socket"],
    );
    pod["metadata"]["namespace"] = json!(PRIVILEGED);
    pod["spec"]["volumes"] = json!([{ "name": "stolen", "hostPath": { "path": folder } }]);
    pod["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "stolen", "mountPath": "/stolen" }]);
    pod["spec"]["containers"][0]["securityContext"] = json!({ "privileged": true });
    pod
}

/// As an administrator might by mistake, and as an earlier image would have left the cluster. No other check depends on these objects.
pub(crate) fn damage_what_is_deployed(cluster: &Cluster) -> Result<()> {
    let (account, front) = (DEPLOYED_ACCOUNT, DEPLOYED_SERVICE);
    cluster.kubectl(["-n", "kube-system", "delete", account])?;
    cluster.kubectl(["-n", "kube-system", "label", "--overwrite", front, "k8s-app=changed"])?;
    cluster.create(&json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": { "name": "of-an-earlier-image", "namespace": "kube-system", "labels": { "constellation/deployed": "true" } },
    }))
}

/// The first node has repaired it by now, or will soon.
pub(crate) fn what_is_deployed_comes_back(cluster: &Cluster, _: &Image) -> Result<()> {
    cluster.wait_until("the first node to deploy again", || {
        let left = list(cluster, &["configmaps", "--namespace", "kube-system"])?;
        let is_left = left.iter().any(|object| name(object) == "of-an-earlier-image");
        ensure!(!is_left, "what an earlier image deployed is still there");
        Ok(true)
    })?;
    get(cluster, &["-n", "kube-system", DEPLOYED_ACCOUNT])?;
    let front = get(cluster, &["-n", "kube-system", DEPLOYED_SERVICE])?;
    let label = &front["metadata"]["labels"]["k8s-app"];
    ensure!(*label == "verification-service", "{label}");
    Ok(())
}

/// The operator takes the worker out: pods, Node, machine and name.
pub(crate) fn a_worker_that_is_removed_leaves_nothing_behind(cluster: &Cluster, _: &Image) -> Result<()> {
    let listed = cluster.constellation(["node", "list"])?;
    ensure!(
        listed.lines().filter(|line| line.contains("its machine, ")).count() == 2,
        "{listed}"
    );
    cluster.constellation(["node", "remove", WORKER, "--yes"])?;
    let names = |what: &[&str]| -> Result<Vec<String>> { Ok(list(cluster, what)?.iter().map(name).collect()) };
    let nodes = names(&["nodes"])?;
    ensure!(nodes == [CONTROL_PLANE], "{nodes:?}");
    let records = names(&["configmaps", "--namespace", "constellation-nodes"])?;
    ensure!(records.iter().all(|record| !record.contains(WORKER)), "{records:?}");
    let listed = cluster.constellation(["node", "list"])?;
    ensure!(!listed.contains(WORKER), "{listed}");
    Ok(())
}

/// Kills the control plane's kubelet.
fn killer() -> Value {
    let kill = "/groups/system.slice/kubelet.service/cgroup.kill";
    let mut pod = pod("killer", CONTROL_PLANE, &["write", kill, "1"]);
    pod["metadata"]["namespace"] = json!(PRIVILEGED);
    pod["spec"]["restartPolicy"] = json!("Never");
    pod["spec"]["volumes"] = json!([{ "name": "groups", "hostPath": { "path": "/sys/fs/cgroup" } }]);
    pod["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "groups", "mountPath": "/groups" }]);
    pod["spec"]["containers"][0]["securityContext"] = json!({ "privileged": true });
    pod
}
