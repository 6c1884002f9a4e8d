//! Which control plane deploys: one of them at a time, whichever has the Lease.
//!
//! Two that deploy at once do harmless work twice, so the nodes' clocks need not agree.

use std::time::Duration;

use cluster_types::{NodeName, Service};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client, Error};

const NAME: &str = "constellation-deployer";
/// As long as the interval between two deployments and the longest one take together.
const LIFETIME: Duration = Duration::from_secs(25 * 60);

/// Whether this node deploys now. A node that has the Lease keeps it by deploying.
pub(super) async fn is_ours(client: &Client, node: &NodeName, now: Timestamp) -> Result<bool, Error> {
    let leases = Api::<Lease>::namespaced(client.clone(), Service::NAMESPACE);
    let taken = match leases.get_opt(NAME).await? {
        Some(lease) if !is_free(lease.spec.as_ref(), node, now) => return Ok(false),
        Some(lease) => {
            leases
                .replace(NAME, &PostParams::default(), &held(lease.metadata, node, now))
                .await
        }
        None => {
            let metadata = ObjectMeta {
                name: Some(NAME.into()),
                ..ObjectMeta::default()
            };
            leases.create(&PostParams::default(), &held(metadata, node, now)).await
        }
    };
    match taken {
        Ok(_) => Ok(true),
        // Another node was faster.
        Err(Error::Api(status)) if ["Conflict", "AlreadyExists"].contains(&status.reason.as_str()) => Ok(false),
        Err(error) => Err(error),
    }
}

/// So is a Lease without a holder or a time.
fn is_free(spec: Option<&LeaseSpec>, node: &NodeName, now: Timestamp) -> bool {
    let holder = spec.and_then(|spec| spec.holder_identity.as_deref());
    let renewed = spec.and_then(|spec| spec.renew_time.as_ref());
    let (Some(holder), Some(MicroTime(renewed))) = (holder, renewed) else {
        return true;
    };
    let age = now.duration_since(*renewed);
    holder == node.as_str() || age.abs() > lifetime()
}

fn lifetime() -> SignedDuration {
    SignedDuration::from_secs(LIFETIME.as_secs().cast_signed())
}

fn held(metadata: ObjectMeta, node: &NodeName, now: Timestamp) -> Lease {
    Lease {
        metadata,
        spec: Some(LeaseSpec {
            holder_identity: Some(node.to_string()),
            lease_duration_seconds: i32::try_from(LIFETIME.as_secs()).ok(),
            renew_time: Some(MicroTime(now)),
            ..LeaseSpec::default()
        }),
    }
}

#[cfg(test)]
mod tests {
    use test_cluster::TestCluster;

    use super::*;

    fn node(number: u8) -> NodeName {
        format!("control-plane-{number}").parse().unwrap()
    }

    #[tokio::test]
    async fn one_control_plane_deploys_until_it_is_gone() {
        let cluster = TestCluster::start().await.unwrap();
        let admin = cluster.admin().unwrap();
        let start = Timestamp::UNIX_EPOCH;
        let turn = async |number, minutes| {
            let now = start + SignedDuration::from_mins(minutes);
            is_ours(&admin, &node(number), now).await.unwrap()
        };
        assert!(turn(0, 0).await);
        assert!(!turn(1, 0).await);
        assert!(turn(0, 10).await);
        assert!(!turn(1, 30).await);
        // It has not renewed the Lease.
        assert!(turn(1, 36).await);
        assert!(!turn(0, 37).await);
    }

    #[test]
    fn a_lease_of_the_far_future_or_without_a_holder_binds_nobody() {
        let now = Timestamp::UNIX_EPOCH;
        let lease = held(ObjectMeta::default(), &node(0), now + SignedDuration::from_mins(26));
        assert!(is_free(lease.spec.as_ref(), &node(1), now));
        assert!(is_free(None, &node(1), now));
        assert!(is_free(Some(&LeaseSpec::default()), &node(1), now));
    }
}
