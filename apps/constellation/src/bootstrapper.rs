//! Sessions with the bootstrapper of a node that is to become a member, or to become one again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Error, Result, anyhow};
use attestation::{ExpectedMembership, ExpectedStatements, Membership, Purpose, TrustBasis, Variants, Verifiers};
use attested_tls::{AttestedNode, Endpoint, HandshakeError, Limits, PeerPolicy, channel};
use cluster_policy::BelievedPolicy;
use cluster_types::NodeRole;
use infrastructure::{Machine, Provider};
use polling::Failed;
use tonic::transport::Channel;

use crate::advice::advise;
use crate::machines;

/// The least time that a node gets to answer a connection.
const ANSWER_LIMIT: Duration = Duration::from_secs(4);

/// Calls control planes, and hangs up unless one proves that it runs an image of the policy and obeys its operator.
pub(crate) struct Caller<'a> {
    provider: &'a dyn Provider,
    trust: TrustBasis,
    /// Accepts a node that has measured no membership.
    new: Endpoint,
    /// Accepts one that has measured that it is a control plane of the policy's cluster.
    member: Endpoint,
    begun: Instant,
}

/// Which of the nodes that a caller accepts has answered.
pub(crate) enum Answer {
    /// A node that has measured no membership yet.
    New(Channel, Box<AttestedNode>),
    /// One that has just become a control plane of the cluster, whoever brought it what it needed.
    Member,
}

impl<'a> Caller<'a> {
    pub(crate) fn new(provider: &'a dyn Provider, variants: &dyn Variants, policy: &BelievedPolicy) -> Result<Self> {
        let verifiers = |membership| -> Result<Verifiers> {
            let statements = ExpectedStatements {
                operator: *policy.operator(),
                membership,
            };
            Ok(Verifiers::one(policy.verifier(variants, &statements)?))
        };
        let control_plane = Membership::new(policy.cluster, NodeRole::ControlPlane);
        let new = verifiers(ExpectedMembership::New)?;
        let member = verifiers(ExpectedMembership::Of(control_plane))?;
        let trust = new.trust();
        let endpoint = |verifiers| Endpoint::new(None, PeerPolicy::Attested(Arc::new(verifiers)));
        Ok(Self {
            provider,
            trust,
            new: endpoint(new),
            member: endpoint(member),
            begun: Instant::now(),
        })
    }

    /// What the Evidence of whoever answers is worth.
    pub(crate) const fn trust(&self) -> TrustBasis {
        self.trust
    }

    /// One attempt. A node that answers but is not the expected one is not tried again.
    pub(crate) async fn call(&self, node: &Machine, purpose: Purpose) -> Result<Answer, Failed<Error>> {
        let unexpected = match self.open(&self.new, node, purpose).await {
            Ok((channel, Some(proven))) => return Ok(Answer::New(channel, Box::new(proven))),
            Ok((_, None)) => return Err(Failed::Stop(anyhow!("{} did not attest", node.name))),
            Err(error) if is_booting(&error) => return Err(Failed::Retry(error.into())),
            Err(error) => error,
        };
        match self.open(&self.member, node, purpose).await {
            Ok(_) => Ok(Answer::Member),
            // It has just taken its network down, or is too busy for a second session.
            Err(error) if is_booting(&error) => Err(Failed::Retry(error.into())),
            Err(_) => Err(Failed::Stop(self.not_what_it_should_be(node, unexpected))),
        }
    }

    async fn open(
        &self,
        endpoint: &Endpoint,
        node: &Machine,
        purpose: Purpose,
    ) -> Result<(Channel, Option<AttestedNode>), HandshakeError> {
        let endpoint = endpoint.clone().with_limits(Limits {
            tls: answer_limit(self.begun.elapsed()),
            ..Limits::default()
        });
        let address = format!("{}:{}", node.host, node.ports.bootstrapper);
        let session = channel(&endpoint, purpose, &address).await?;
        Ok((session.channel, session.node))
    }

    /// A machine that has stopped explains more than its broken session.
    fn not_what_it_should_be(&self, node: &Machine, error: HandshakeError) -> Error {
        if let Err(stopped) = machines::check_running_of(self.provider, |machine| machine.name == node.name) {
            return stopped;
        }
        let error = Error::new(error).context(format!("{} is not the expected node", node.name));
        advise(
            error,
            Vec::new(),
            "compare the image's reference-values.json with the image; if they belong together, someone has changed what the \
             node runs or whom it obeys",
        )
    }
}

/// The port forwarder accepts a connection long before the node does, and then offers it to the node at growing intervals; a new
/// connection gets through at once. A machine that boots slowly also answers slowly.
fn answer_limit(waited: Duration) -> Duration {
    (waited / 4).max(ANSWER_LIMIT)
}

/// The port forwarder accepts connections before anything on the node listens, and then resets them.
fn is_booting(error: &HandshakeError) -> bool {
    matches!(error, HandshakeError::Io(_) | HandshakeError::TimedOut(_))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_boots_slowly_is_given_more_time_to_answer() {
        let limits = [0, 16, 60, 400].map(|waited| answer_limit(Duration::from_secs(waited)).as_secs());
        assert_eq!(limits, [4, 4, 15, 100]);
    }
}
