//! What the nodes hold at the end, and the committed log: the other half of a history, and its verdict.

use base::machine::StateMachine;
use base::rows::{Changes, Row, Value};
use base::{Index, Position, ShardId, Term};
use history::record::{Export, Line, Run, View};
use history::{History, Verdict, judge};
use queue::checkpoint::{COMPLETED, DEAD, FAILED, LIVE};
use queue::{Answer, Query, QueueMachine, TaskId, TaskKey, TaskView};
use storage::checkpoint::{Checkpoint, Meta};

use crate::invariants::FIRST_ENTRY;
use crate::process::Node;
use crate::record;
use crate::world::World;

/// Saves and leaders are waited for so long, ms.
const WAIT_MAX: u64 = 10_000;

impl World {
    /// The whole history of the run. The run is over then: exports end the nodes' saves.
    pub fn history(&mut self, reproduce: String) -> History {
        let mut history = History::default();
        history.push(Line::Run(Box::new(Run {
            reproduce,
            shards: self.options.shards as u16,
            incarnation: self.watch.incarnation.unwrap_or_default().0,
            drift_ppm: self.options.drift_ppm as u32,
            due_per_entry: self.options.due_per_entry as u32,
            policy: record::policy(&queue::Policy::default()),
            operations_min: self.options.operations as u32,
            healed: self.healed,
        })));
        // Saves under way must end before exports begin others, and leaders say who is a member. Then nothing goes on.
        let saves = |node: &Node| node.process().is_some_and(|process| process.runner.is_saving());
        let shards = self.options.shards as u16;
        let shards = || (0..shards).map(ShardId);
        for _ in 0..WAIT_MAX {
            if !self.nodes.iter().any(saves) && shards().all(|shard| self.leader(shard).is_some()) {
                break;
            }
            self.run_until(self.time + 1_000);
        }
        for shard in shards() {
            let number = shard.0;
            for n in self.running() {
                if let Some(export) = self.export(n, shard) {
                    history.push(Line::Export(Box::new(export)));
                }
            }
            let mut index = FIRST_ENTRY;
            while let Some(entry) = self.watch.entry(shard, index).cloned() {
                let node = (0..self.nodes.len()).find(|n| {
                    let applied = self.watch.applied.get(&(*n, shard));
                    applied.is_some_and(|applied| applied.binary_search(&index).is_ok())
                });
                let node = node.unwrap_or_default() as u16;
                history.push(Line::Log(Box::new(record::entry(&mut self.names, node, number, &entry))));
                index += 1;
            }
        }
        self.write_down_open();
        for name in self.names.all() {
            history.push(Line::Name(name));
        }
        let forced: Vec<_> = self.clients.forced.iter().map(record::task).collect();
        for line in std::mem::take(&mut self.lines) {
            if matches!(&line, Line::Work(work) if forced.contains(&work.task)) {
                continue;
            }
            history.push(line);
        }
        history
    }

    /// What a node holds of a shard; nothing: it is no member, not whole, or still saves.
    fn export(&mut self, n: usize, shard: ShardId) -> Option<Export> {
        if self.nodes[n].process()?.runner.is_saving() {
            return None;
        }
        let incarnation = self.nodes[n].directory.cluster?.1;
        let process = self.nodes[n].process()?;
        let id = process.runner.replica.status().into_iter().find(|status| status.shard == shard)?;
        let me = self.nodes[n].directory.id;
        let (installing, applied) = (id.installing, id.applied);
        // Who was taken out may not know it.
        let leader = self.leader(shard)?;
        let process = self.nodes[leader].process()?;
        let members = process.runner.replica.members(shard).configuration.members();
        if !members.contains(&me) || installing || applied < Index(FIRST_ENTRY) {
            return None;
        }
        let process = self.nodes[n].process_mut()?;
        let (index, term, configuration) = process.runner.replica.freeze(shard);
        let mut changes = Changes::default();
        while !process.runner.replica.collect(shard, usize::MAX / 2, &mut changes) {}
        let mut saved = process.checkpoints[&shard].with_what_waits().ok()?;
        saved.write(&changes).ok()?;
        saved.commit(&Meta { index, term, configuration }).ok()?;
        let mut rows = saved.rows();
        let mut live: Vec<(u64, String)> = Vec::new();
        let listed = rows.for_each(LIVE, &mut |_, key, row: Row<'_>| {
            live.push((key as u64, row.reader().text()?.to_owned()));
            Ok(())
        });
        listed.ok()?;
        let mut ended: Vec<TaskView> = Vec::new();
        for table in [COMPLETED, FAILED, DEAD] {
            let listed = rows.for_each(table, &mut |_, key, row: Row<'_>| {
                let id = TaskId::new(incarnation, shard, TaskKey(key as u64));
                ended.push(queue::record::decode(row.0, id)?);
                Ok(())
            });
            listed.ok()?;
        }
        let keys_table = QueueMachine::schema().tables.iter().position(|table| table.name == "idempotency")? as u8;
        let mut bound: Vec<([u8; 16], u64, u64)> = Vec::new();
        let listed = rows.for_each(keys_table, &mut |_, key, row: Row<'_>| {
            let mut reader = row.reader();
            let scope = match reader.value()? {
                Value::Blob(scope) => scope.try_into().map_err(|_| base::codec::Malformed)?,
                _ => return Err(base::codec::Malformed),
            };
            reader.value()?;
            bound.push((scope, key as u64, reader.number()?));
            Ok(())
        });
        listed.ok()?;
        drop(rows);
        let window = self.own.policy.idempotency_window.0;
        let process = self.nodes[n].process_mut()?;
        let machine = process.runner.replica.machine_mut(shard);
        let now = machine.stamps().lease.0;
        let (Answer::Queues(queues), _) = machine.query(&Query::Queues) else { return None };
        let all = Query::Operations { tenant: None, running: false };
        let (Answer::Operations(operations), _) = machine.query(&all) else { return None };
        let mut views: Vec<TaskView> = Vec::new();
        for (key, tenant) in live {
            let id = TaskId::new(incarnation, shard, TaskKey(key));
            let (answer, _) = machine.query(&Query::Task { tenant: tenant.into(), id, until_ended: false });
            if let Answer::Task(view) = answer {
                views.push(view.as_ref().clone());
            }
        }
        let mut tasks: Vec<View> = Vec::new();
        for view in views {
            let view = self.with_payload(n, shard, view);
            tasks.push(record::view(&mut self.names, &view));
        }
        tasks.extend(ended.iter().map(|view| record::view(&mut self.names, view)));
        let keys = bound
            .iter()
            .filter(|(_, _, since)| now < since + window)
            .filter_map(|(scope, key, _)| self.names.bound(scope, history::record::Task { shard: shard.0, key: *key }));
        let keys = keys.collect();
        let queues = queues.iter().map(|stats| record::stats(&mut self.names, stats)).collect();
        let operations = operations.iter().map(|operation| record::progress(&mut self.names, operation)).collect();
        let at = record::position(Position { shard, term: Term(term.0), index });
        Some(Export { node: n as u16, at, tasks, keys, queues, operations })
    }

    /// Lets the checker judge the run. Nothing is wrong if it says nothing.
    pub fn judge(&mut self, reproduce: String) -> Option<String> {
        let history = self.history(reproduce);
        match judge(&history) {
            Verdict::Green(summary) => {
                *self.reached.entry("K16-happened").or_default() += summary.happened as u64;
                *self.reached.entry("K16-not").or_default() += summary.vanished as u64;
                for (mark, count) in summary.reached {
                    *self.reached.entry(mark).or_default() += count as u64;
                }
                None
            }
            Verdict::Red(report) => {
                self.violate(report.id, report.what.clone());
                Some(report.to_string())
            }
            Verdict::Inconclusive(why) => {
                self.violate("inconclusive", why.clone());
                Some(why)
            }
        }
    }
}
