//! One command makes a cluster; it is used as its users would, and attacked as its host would.
//!
//! A cluster takes minutes, so there is one for all checks. They run in their order, each whatever became of the others.

mod attacks;
mod credentials;
mod daemon;
mod policy;
mod reach;
mod relay;
mod restart;
mod rogue;
mod secrets;
mod workload;

use std::fs;

use anyhow::{Context, Result, ensure};
use cluster_config::names;
use e2e::{Cluster, Image};
use serde_json::Value;

type Check = fn(&Cluster, &Image) -> Result<()>;

macro_rules! checks {
    ($($module:ident::$name:ident),* $(,)?) => {
        [$((stringify!($name), $module::$name as Check)),*]
    };
}

#[test]
fn a_cluster_is_made_used_attacked_and_ended() -> Result<()> {
    let image = Image::built()?;
    let cluster = Cluster::prepare(image.disk())?;
    let result = a_wrong_hash_stops_it(&cluster)
        .and_then(|()| up(&cluster))
        .and_then(|()| run_checks(&cluster, &image));
    if let Err(error) = &result {
        cluster.say(&format!("FAILED: {error:#}"));
        cluster.report();
    }
    result.and_then(|()| down(&cluster))
}

fn run_checks(cluster: &Cluster, image: &Image) -> Result<()> {
    let checks = checks![
        workload::every_node_is_ready_and_every_pod_runs,
        workload::the_control_plane_is_not_asked_every_second,
        workload::a_pod_that_reaches_the_host_is_refused,
        workload::every_node_is_verified,
        workload::a_service_answers_from_both_nodes_by_its_name,
        workload::pod_traffic_between_nodes_is_encrypted,
        workload::timers_of_pods_are_late_where_they_are_emulated,
        attacks::replayed_evidence_is_refused,
        attacks::a_relayed_session_is_refused,
        attacks::reflected_evidence_is_refused,
        attacks::a_node_with_another_image_is_refused,
        attacks::a_node_of_another_operator_is_refused,
        attacks::a_worker_gets_no_control_plane_role_without_a_grant,
        attacks::a_node_gets_no_disk_key_of_another,
        reach::every_account_reaches_what_is_written_and_no_more,
        credentials::a_bootstrap_token_is_good_for_one_certificate,
        credentials::kubeadm_follows_no_edited_cluster_info,
        credentials::a_kubelet_serves_at_its_nodes_address_alone,
        credentials::the_pod_networks_token_changes_only_its_own_node,
        attacks::the_key_services_socket_gives_nothing_away,
        daemon::the_attestation_daemons_socket_is_for_its_service_alone,
        attacks::metadata_that_lies_lets_nobody_in,
        secrets::no_secret_is_in_a_log_or_an_object,
        workload::a_kubelet_that_starts_again_authenticates,
        workload::what_is_deployed_comes_back,
        workload::with_the_tunnel_down_nothing_leaks,
        restart::what_restarts_at_once_comes_back,
        secrets::no_secret_is_in_a_log_of_this_machine,
        policy::an_edited_policy_admits_nobody,
        workload::a_worker_that_is_removed_leaves_nothing_behind,
    ];
    cluster.create(&workload::privileged_namespace())?;
    workload::damage_what_is_deployed(cluster)?;
    let mut failed = Vec::new();
    for (name, check) in checks {
        match check(cluster, image) {
            Ok(()) => cluster.say(&format!("{name}: as expected")),
            Err(error) => {
                let failure = format!("{name}: FAILED: {error:#}");
                cluster.say(&failure);
                failed.push(failure);
            }
        }
    }
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

/// The node says which component is refused, installs nothing and ends; the next run starts afresh, and makes a worker too.
fn a_wrong_hash_stops_it(cluster: &Cluster) -> Result<()> {
    let kubelet = "bin/kubelet";
    let refusal = cluster
        .mirror()
        .with_a_flipped_bit(kubelet, || cluster.up_without_workers())?;
    let refusal = refusal.err().context("a changed kubelet was installed")?.to_string();
    for part in [
        "cannot fetch component bin/kubelet",
        "expected sha256:",
        names::CLUSTER_LOG,
    ] {
        ensure!(refusal.contains(part), "{part:?} is not in: {refusal}");
    }
    let log = fs::read_to_string(cluster.workspace().join(names::CLUSTER_LOG))?;
    ensure!(log.contains("initialising"), "the node's log does not say what it did");
    cluster.say("a component with a wrong hash is refused: as expected");
    Ok(())
}

fn up(cluster: &Cluster) -> Result<()> {
    cluster.up()?;
    let timings = fs::read(cluster.workspace().join(names::TIMINGS)).context("no timings")?;
    let timings: Value = serde_json::from_slice(&timings)?;
    cluster.say(&format!("made: {timings}"));
    Ok(())
}

/// `mini down` leaves neither files, except for a configuration that it did not write, nor processes.
fn down(cluster: &Cluster) -> Result<()> {
    cluster.constellation(["mini", "down", "--yes"])?;
    let left = fs::read_dir(cluster.workspace())?.collect::<Result<Vec<_>, _>>()?;
    ensure!(
        left.iter().all(|file| file.file_name() == names::CONFIG),
        "mini down left {left:?}"
    );
    ensure!(!cluster.has_process_with("")?, "mini down left processes");
    Ok(())
}
