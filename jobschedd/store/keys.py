"""Every key of a namespace, and nowhere else. All share one hash tag, so that any script may use several.

================  ======  ============================================================  ====================
key               type    member                                                        lifetime
================  ======  ============================================================  ====================
identity          string  random id of this namespace's data: the *incarnation* of     for ever
                          the store; an emptied or rolled-back Redis has another
mark              string  counter that the leader moves on every second, and that no    for ever
                          copy of this data that is older has reached
loss              hash    what a master says of data that Redis has lost; while it is   until rebuilt
                          there, nothing is accepted and nothing is dispatched
abandoned         set     identities that an operator has given up                      for ever
rebuilt           string  the mark at the last rebuild: who saw no later one announces  for ever
                          what it has
restored          hash    what the last rebuild brought back                            for ever
announced         stream  orders that channels had when data were lost                  until taken in
leader            string  ``<instance>:<epoch>`` of the master that leads               leader lease
together          string  that leader, if its collector reads reports that share an entry  leader lease
epoch             string  counter of leaderships                                        for ever
next-id           string  counter of job ids                                            for ever
next-client       string  counter of waiting clients                                    for ever
job:<id>          string  a record: header, spec, result (see jobschedd/job.py)         until retention ends
operation:<c>     string  last submit of client c and its answer, for a lost reply      1 hour
once:<key>        string  id of the job submitted under this idempotency key            as its key_scope says
classes           hash    class text -> number (see job.Target)                         until unused, where many
next-class        string  the number of the newest class                                for ever
limits            hash    limits that an operator set: key, or ``rate <key>``           until removed
configured-limits hash    the same, as the leading master is configured                 until another leads
limit:<key>       set     ids that count against this limit: each is with a channel     while not empty
rate:<key>:<ms>   zset    starts that count against this rate, by time                  its period
used:<channel>    hash    id -> what it uses of this channel's resources (msgpack)      while not empty
holds             hash    id -> what it counts against (msgpack)                        while with a channel
blocked           set     limits that somebody waits for, so that who lets go says so   until let go of
pending           set     ``<class>:<priority>`` of the lists that are not empty         while not empty
pending:<c>:<p>   list    ids that wait for room; may hold ids of jobs gone elsewhere    while not empty
scheduled         zset    id by due time                                                while not empty
waiting           zset    ids that wait for other jobs, by when that was last checked    while not empty
awaits:<id>       set     what a job waits for still: ids                               while it waits
dependents:<id>   list    who waits for a job: ``<id>:<condition>:<time of waiting>``   until it ends
unblocking:<n>    list    the same, taken from a job with its end                       until told
unblocking        list    ``<n>:<outcome>:<id>`` of ends to tell those that waited      while not empty
unblocks          string  counter that numbers those ends, and times of waiting         for ever
workflows         zset    ``<first id>:<jobs>:<name>`` of workflows, by first id        the newest 10,000
expiring          zset    id by expiry time                                             while not empty
arrays            set     ids of arrays that have not ended                             while not empty
array:<id>        hash    counts of a job array's tasks (see lua/array.lua)             as its job
array:<id>:<p>    string  bitmaps of its indices: all, todo, active, failed,            as its job
                          cancelled, expired
array:<id>:places list    places of a job for all nodes                                 as its job
cancelling        set     ids with an open request to cancel                            while not empty
held              hash    id of a job that a user holds -> why, by whom, since when (JSON)  while held
full              string  what is over its budget: while it is there, submits are refused  10 s, repeated
quiet             string  live output is over its budget: nobody new may follow         10 s, repeated
usage             string  what the leader measured last (JSON)                          1 minute
bell              list    what changed, for the dispatcher to block on                  until read
murmurs           list    what changed, and nobody need wake up for                     until read
channels          hash    channel incarnation -> what it said of itself (JSON)          until it is reaped
known             hash    ``<node>/<channel>`` -> its labels, when it last came (JSON)   until forgotten
owners            hash    ``<node>/<channel>`` -> its newest incarnation                 for ever
lease:<i>         hash    window and home of channel incarnation i                      channel lease
dispatch:<i>      stream  orders for channel incarnation i, until answered              until it is reaped
control:<i>       stream  hints for channel incarnation i: cancel, follow               1 hour, capped
results           stream  what channels report, until collected                         until collected
judged            hash    id -> record of a job judged with its report, for the history  until collected
schedules         hash    name of a schedule -> what it is (JSON, see schedule.py)       until removed
schedule:<name>   hash    revision, origin, cursor (the time it has come to), paused,   until removed
                          waiting times, last job, counters
fires:<name>      list    its last 50 fires (JSON), the newest first                    until removed
configurations    hash    node of a master -> what it is configured with (JSON)         1 day unless renewed
inbox:<n>         list    ids of ended jobs that client n waits for, the first with      10 minutes
                          its record
waiters:<id>      set     further clients that wait for one job                         1 day
output:<id>       stream  live output, while somebody follows                           1 minute after the end
suspects          hash    channel incarnation -> since when its lease is missing         until it is reaped
drains            hash    node, channel, node/channel or group:<g> -> why (JSON)        until resumed
offers            hash    class -> channels for lone jobs of it; fence of the leader;      until withdrawn
                          turn; how long to keep successes (ms)
kept              string  channels that the leader keeps for jobs that need much (JSON)   while there are any
dead              stream  messages nobody could read                                    capped
masters           zset    masters that answer questions, by the time until they do      while any is there
questions:<m>     list    questions to master instance m, about its history             1 minute, capped
answers:<q>       list    what masters answered to question q                           1 minute
hooked            string  digits of the outcomes that hooks want to know of             until another leads
nameable          string  names of hooks that jobs may name, with spaces between        until another leads
events            stream  what hooks are to be told of, until it is shared out          capped
noticed           hash    node -> its state, job -> why it is late, as hooks were told  while hooks ask for it
hook:<name>       zset    deliveries of one hook by the time they are due               until delivered, capped
sent              set     pubsub: channels with ids published and not answered          while not empty
sent:<channel>    zset    pubsub: ids published and not answered, by dispatch time      while not empty
wires             set     pubsub: channels that the master publishes to                 until another leads
listening         string  pubsub: fence of the collector that hears the result channel  15 seconds
published         string  pubsub: counter that numbers dispatches                       for ever
taken:<id>        hash    pubsub: which of our slaves took which dispatch of a job      1 day
answer:<id>       hash    pubsub: report of our own slave, and on which dispatch        10 minutes
================  ======  ============================================================  ====================
"""

from __future__ import annotations


class Keys:
    """The keys of one namespace. A method that ends in ``prefix`` is completed by scripts, within the same slot."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self.base = f"jobsched:{{{namespace}}}:"
        self.identity = self.base + "identity"
        self.mark = self.base + "mark"
        self.loss = self.base + "loss"
        self.abandoned = self.base + "abandoned"
        self.rebuilt = self.base + "rebuilt"
        self.restored = self.base + "restored"
        self.announced = self.base + "announced"
        self.leader = self.base + "leader"
        self.together = self.base + "together"
        self.epoch = self.base + "epoch"
        self.next_id = self.base + "next-id"
        self.next_client = self.base + "next-client"
        self.classes = self.base + "classes"
        self.next_class = self.base + "next-class"
        self.limits = self.base + "limits"
        self.configured_limits = self.base + "configured-limits"
        self.holds = self.base + "holds"
        self.pending = self.base + "pending"
        self.scheduled = self.base + "scheduled"
        self.expiring = self.base + "expiring"
        self.waiting = self.base + "waiting"
        self.unblocking = self.base + "unblocking"
        self.workflows = self.base + "workflows"
        self.arrays = self.base + "arrays"
        self.cancelling = self.base + "cancelling"
        self.held = self.base + "held"
        self.full = self.base + "full"
        self.usage = self.base + "usage"
        self.bell = self.base + "bell"
        self.murmurs = self.base + "murmurs"
        self.channels = self.base + "channels"
        self.known = self.base + "known"
        self.owners = self.base + "owners"
        self.schedules = self.base + "schedules"
        self.configurations = self.base + "configurations"
        self.results = self.base + "results"
        self.judged = self.base + "judged"
        self.suspects = self.base + "suspects"
        self.drains = self.base + "drains"
        self.kept = self.base + "kept"
        self.offers = self.base + "offers"
        self.dead = self.base + "dead"
        self.masters = self.base + "masters"
        self.hooked = self.base + "hooked"
        self.nameable = self.base + "nameable"
        self.events = self.base + "events"
        self.noticed = self.base + "noticed"
        self.sent_channels = self.base + "sent"
        self.published = self.base + "published"
        self.wires = self.base + "wires"
        self.listening = self.base + "listening"

    def job(self, job_id: str) -> str:
        """The record of one job."""
        return f"{self.base}job:{job_id}"

    def awaits(self, job_id: str) -> str:
        """What one job waits for."""
        return f"{self.base}awaits:{job_id}"

    def operation(self, client: str) -> str:
        """The last submit of one client."""
        return f"{self.base}operation:{client}"

    def array(self, job_id: str, part: str = "") -> str:
        """The counts of an array, or one of its bitmaps."""
        return f"{self.base}array:{job_id}" + (f":{part}" if part else "")

    def pending_list(self, job_class: int, priority: int) -> str:
        """The ids of one class and priority that wait for room."""
        return f"{self.base}pending:{job_class}:{priority}"

    def limit(self, key: str) -> str:
        """The ids that count against a limit."""
        return f"{self.base}limit:{key}"

    def rate(self, key: str, period_ms: int) -> str:
        """The starts that count against a rate."""
        return f"{self.base}rate:{key}:{period_ms}"

    def used(self, channel: str) -> str:
        """What jobs use of the resources of a channel (node/name)."""
        return f"{self.base}used:{channel}"

    def lease(self, incarnation: str) -> str:
        """The lease of a channel incarnation."""
        return f"{self.base}lease:{incarnation}"

    def dispatch(self, incarnation: str) -> str:
        """The dispatch stream of a channel incarnation."""
        return f"{self.base}dispatch:{incarnation}"

    def control(self, incarnation: str) -> str:
        """The hints for a channel incarnation."""
        return f"{self.base}control:{incarnation}"

    def schedule(self, name: str) -> str:
        """The state of a schedule."""
        return f"{self.base}schedule:{name}"

    def fires(self, name: str) -> str:
        """The last fires of a schedule."""
        return f"{self.base}fires:{name}"

    def inbox(self, client: int) -> str:
        """Where a waiting client is told of ended jobs."""
        return f"{self.base}inbox:{client}"

    def output(self, job_id: str) -> str:
        """The live output of a followed job."""
        return f"{self.base}output:{job_id}"

    def hook(self, name: str) -> str:
        """What one hook has to deliver."""
        return f"{self.base}hook:{name}"

    def questions(self, instance: str) -> str:
        """What a master is asked."""
        return f"{self.base}questions:{instance}"

    def answers(self, question: str) -> str:
        """Where the answers to one question are waited for."""
        return f"{self.base}answers:{question}"

    def answer(self, job_id: str) -> str:
        """pubsub: the report that our own slave leaves."""
        return f"{self.base}answer:{job_id}"

    def taken(self, job_id: str) -> str:
        """pubsub: which of our slaves took a job."""
        return f"{self.base}taken:{job_id}"

    def sent(self, channel: str) -> str:
        """pubsub: what was published to a channel and not answered."""
        return f"{self.base}sent:{channel}"


def dispatch_channel(name: str) -> str:
    """pubsub: the Redis channel that carries job ids to the dispatch channel ``name``; a name of the wire protocol."""
    return f"CHANNEL_DISPATCH_{name}"


#: pubsub: the Redis channel that carries every answer; a name of the wire protocol.
RESULT_CHANNEL = "CHANNEL_RESULT"
