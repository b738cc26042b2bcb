//! Bodies of the routes under `/v1/codeq`.

mod requests;
mod task;

pub use requests::{
    CancelBody, ClaimBody, CreateBatchBody, CreateBody, EditBody, HeartbeatBatchBody, HeartbeatBody, HeartbeatItem,
    NackBody, NoBody, PauseBody, RedriveBody, ReleaseBody, ResultBatchBody, ResultBody,
};
pub use task::{Lease, Location, ResultRecord, Task};
