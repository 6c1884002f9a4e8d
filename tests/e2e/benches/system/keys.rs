//! `AdmitNode`, as the join service calls it: the Evidence of a node, over a nonce that is drawn for it.

use std::sync::Arc;

use anyhow::Result;
use attestation::Purpose;
use cluster_policy::BelievedPolicy;
use key_service_client::{KeyServiceClient, PresentedPolicy, WantedRole};
use node_secrets::SealingKey;
use test_figures::{Clock, Samples, WARM_UP};
use test_machines::InProcessAttester;
use test_services::{KeyService, SALT, presented};

use crate::load::{CALLERS, Load, Meter, side_by_side};
use crate::progress::say;

const ROUNDS: usize = 500;

pub(crate) async fn measure(service: &KeyService) -> Result<Load> {
    say("asking the key service to admit nodes");
    let (client, policy) = (service.client(), Arc::new(service.config().policy()));
    let meter = Meter::start(service.process().id())?;
    let alone = Samples::take_async(Clock::Wall, ROUNDS, async || admit(&client, &policy).await);
    let alone = alone.await?;
    let each = meter.each(WARM_UP + ROUNDS)?;
    let callers = (0..CALLERS).map(|_| {
        let (client, policy) = (client.clone(), policy.clone());
        async move {
            for _ in 0..ROUNDS / CALLERS {
                admit(&client, &policy).await?;
            }
            Ok(())
        }
    });
    Ok(Load {
        alone,
        together: Some(side_by_side(ROUNDS / CALLERS, callers).await?),
        each: Some(each),
    })
}

/// A new node whose TPM takes no time.
async fn admit(client: &KeyServiceClient, policy: &BelievedPolicy) -> Result<()> {
    let nonce = client.nonce(Purpose::Join).await?;
    let node = InProcessAttester::generate();
    let presented = presented(&node, nonce, Purpose::Join, &SealingKey::generate())?;
    let policy = PresentedPolicy {
        policy,
        measurement_salt: &SALT,
    };
    client.admit(&presented, policy, WantedRole::Worker).await?;
    Ok(())
}
