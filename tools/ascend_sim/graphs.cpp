// Graphs: what a stream is asked to do while it captures, done again at each replay.

#include "streams.h"

namespace sim {
bool capture_record(Stream*, Event*) { return false; }
bool capture_wait(Stream*, Event*) { return false; }
bool capture_reset(Stream*, Event*) { return false; }
aclError add_to_graph(Stream*, const char*, Work, bool*) { return ACL_SUCCESS; }
aclError refuse_while_capturing(Stream*, const char*) { return ACL_SUCCESS; }
}  // namespace sim
