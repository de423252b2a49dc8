//! The last look before the fault. Where a busy host holds etcd up, elections come without one: whoever was chosen to be hit may lead no
//! more, and another run than the one that was announced would be measured.
//! `run` calls `take_aim` in the place of a mere baseline; what it sees is the record's view of the cluster before the fault.
//! Nothing is changed on a machine here: who is hit instead is written down before anything is injected.

use super::super::aim::{lately, strayed};
use super::super::before::{again, compiled};
use super::super::judge::silence;
use super::super::target::choose;
use super::{Phases, names};

/// So many are chosen, one after the other, before the run ends without its fault.
const CHOICES: u32 = 3;

impl Phases<'_> {
    /// The cluster under load at a pace that it bears, and whoever is hit as the drill's rule wants it; or why nothing is injected.
    pub(super) async fn take_aim(&mut self) -> Result<(), String> {
        let nothing = |why: String| format!("nothing was injected: {why}");
        let mut choices = 1;
        loop {
            self.baseline().await?;
            let Some(why) = self.strayed().await.map_err(nothing)? else { return Ok(()) };
            // What was prepared was prepared for those who were chosen, and is undone at the end.
            if choices == CHOICES || !self.record.script.prepare.is_empty() {
                return Err(nothing(why));
            }
            choices += 1;
            self.choose_anew(&why).map_err(nothing)?;
        }
    }

    /// What the rule says of the targets and is no longer so.
    async fn strayed(&mut self) -> Result<Option<String>, String> {
        let running = self.running.as_ref().ok_or("there is no load")?;
        let (clock, heard, before) = (self.clock, silence(&self.record), &self.record.before);
        let members = || {
            let now = clock.now();
            lately(&before.members, &running.telemetry.so_far(), now.minus(heard), now)
        };
        let seen = again(&self.record.drill, &self.site, self.options.kube.as_deref(), before, members).await?;
        self.record.before = seen;
        Ok(strayed(self.record.drill.target, &self.record.chosen.nodes, &self.record.before))
    }

    /// Others are hit, by the same rule and seed.
    fn choose_anew(&mut self, why: &str) -> Result<(), String> {
        let record = &mut self.record;
        let chosen = choose(&record.drill, &record.before, record.seed).map_err(|error| error.to_string())?;
        record.script = compiled(&record.drill, &record.before, &chosen, &self.site, self.options);
        record.chosen = chosen;
        self.log.record(&self.pending()).map_err(|error| error.to_string())?;
        let chosen = &self.record.chosen;
        self.say(&format!("{why}; {}: {} ({})", self.record.drill.name, names(chosen), chosen.why));
        if let Some(running) = &self.running {
            running.load.turn_to(self.off_target());
        }
        Ok(())
    }
}
