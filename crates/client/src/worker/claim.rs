//! Asks for tasks, as many as slots are free. While there are none, the question waits at the server.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use crate::error::Error;
use crate::key::chance;
use crate::repeat::pause;
use crate::routes::Claim;
use crate::worker::{Crew, Phase, job};

/// Tasks of one claim, as servers give them where nothing else is set.
const CLAIM_MAX: usize = 10;
/// How long a claim waits at the server.
const WAIT: Duration = Duration::from_secs(20);
/// Claims at one time, at most.
const CLAIMERS_MAX: usize = 4;

/// How many ask at one time, for so many slots.
pub(super) fn claimers(slots: usize) -> usize {
    slots.div_ceil(CLAIM_MAX).min(CLAIMERS_MAX)
}

/// Claims until the worker is to end.
///
/// # Errors
/// The server refuses.
pub(super) async fn claim(crew: Arc<Crew>) -> Result<(), Error> {
    let mut phase = crew.phase.subscribe();
    let mut claim = Claim::of(crew.handlers.keys()).lease(crew.lease).wait(WAIT);
    if crew.handlers.len() > 1 {
        // One queue does not starve another one that is as urgent.
        claim = claim.by_priority();
    }
    let mut failures = 0;
    loop {
        let mut places = Vec::with_capacity(CLAIM_MAX);
        tokio::select! {
            place = crew.slots.clone().acquire_owned() => places.push(place.expect("nobody closes it")),
            _ = phase.wait_for(|phase| *phase > Phase::Working) => return Ok(()),
        }
        while places.len() < CLAIM_MAX
            && let Ok(place) = crew.slots.clone().try_acquire_owned()
        {
            places.push(place);
        }
        let question = claim.clone().count(places.len());
        let claimed = tokio::select! {
            biased;
            claimed = crew.client.claim(&question) => claimed,
            // The connection is closed by that, and the server takes back what it cannot deliver.
            _ = phase.wait_for(|phase| *phase > Phase::Working) => return Ok(()),
        };
        match claimed {
            Ok(tasks) => {
                if failures > 0 {
                    info!(name: "worker.claims_again", tries = failures, "tasks can be claimed again");
                    failures = 0;
                }
                let received = Instant::now();
                for (task, place) in tasks.into_iter().zip(places) {
                    tokio::spawn(job::run(crew.clone(), task, received, place));
                }
            }
            Err(error @ (Error::Refused(_) | Error::Unusable(_))) => return Err(error),
            Err(error) => {
                failures += 1;
                // At doubling intervals: it may last.
                if u32::is_power_of_two(failures) {
                    warn!(name: "worker.cannot_claim", tries = failures, %error, "no task can be claimed");
                }
                drop(places);
                tokio::select! {
                    () = tokio::time::sleep(pause(failures, chance())) => {}
                    _ = phase.wait_for(|phase| *phase > Phase::Working) => return Ok(()),
                }
            }
        }
    }
}
