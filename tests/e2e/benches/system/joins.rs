//! Joins: an attested session, and `IssueJoinTicket` in it. Every disk is new, as it is in a real join.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use attestation::{BindingParts, Nonce, Purpose};
use grpc_api::join::IssueJoinTicketRequest;
use grpc_api::join::api_client::ApiClient;
use test_figures::{Clock, Samples, Table};
use test_machines::SOFTWARE_TPM;
use test_services::{ControlPlane, JoiningNode, join_request};

use crate::load::{CALLERS, Load, Meter, side_by_side};
use crate::progress::say;

const ROUNDS: usize = 200;
/// Of each of several nodes.
const JOINS: usize = 25;
/// Each side of a session quotes once, one after the other.
const QUOTES_OF_A_SESSION: u32 = 2;

/// How long the parts of one join took.
struct Join {
    session: Duration,
    ticket: Duration,
}

pub(crate) async fn measure(control_plane: Arc<ControlPlane>, table: &mut Table) -> Result<()> {
    say("joining one node after another");
    let node = JoiningNode::boot(SOFTWARE_TPM)?;
    let quotes = quotes(&node)?;
    let meter = Meter::start(control_plane.join_service().id())?;
    let mut joins = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        joins.push(join(&control_plane, &node, request(0)).await?);
    }
    let each = meter.each(ROUNDS)?;
    say("joining several nodes at once");
    let together = join_together(&control_plane).await?;

    let samples = |part: fn(&Join) -> Duration| Samples::new(joins.iter().map(part).collect());
    let whole = samples(|join| join.session + join.ticket)?;
    let share = quotes.p50().as_secs_f64() * f64::from(QUOTES_OF_A_SESSION) / whole.p50().as_secs_f64();
    alone(quotes).write("one quote of a software TPM", table);
    alone(samples(|join| join.session)?).write("session with the join service", table);
    alone(samples(|join| join.ticket)?).write("IssueJoinTicket in that session", table);
    let load = Load {
        alone: whole,
        together: Some(together),
        each: Some(each),
    };
    load.write("session and ticket", table);
    table.note(format!(
        "The TPMs' own time, two quotes, is {:.0} % of session and ticket.",
        share * 100.0
    ));
    Ok(())
}

fn alone(samples: Samples) -> Load {
    Load {
        alone: samples,
        together: None,
        each: None,
    }
}

fn quotes(node: &JoiningNode) -> Result<Samples> {
    let parts = BindingParts::Nonce(Nonce::generate());
    Samples::take(Clock::Wall, ROUNDS, || {
        node.attester().attest(&parts)?;
        Ok(())
    })
}

async fn join(control_plane: &ControlPlane, node: &JoiningNode, request: IssueJoinTicketRequest) -> Result<Join> {
    let start = Instant::now();
    let opened = control_plane.session(node, Purpose::Join).await?;
    let session = start.elapsed();
    ApiClient::new(opened.channel).issue_join_ticket(request).await?;
    let ticket = start.elapsed() - session;
    Ok(Join { session, ticket })
}

async fn join_together(control_plane: &Arc<ControlPlane>) -> Result<f64> {
    let nodes: Vec<JoiningNode> = (0..CALLERS)
        .map(|_| JoiningNode::boot(SOFTWARE_TPM))
        .collect::<Result<_>>()?;
    let callers = (1..).zip(nodes).map(|(number, node)| {
        let control_plane = control_plane.clone();
        async move {
            for _ in 0..JOINS {
                join(&control_plane, &node, request(number)).await?;
            }
            Ok(())
        }
    });
    side_by_side(JOINS, callers).await
}

/// What the machine with this number requests: it has one name and one address.
fn request(number: u8) -> IssueJoinTicketRequest {
    join_request(&format!("worker-{number}"), [10, 42, 2, number])
}
