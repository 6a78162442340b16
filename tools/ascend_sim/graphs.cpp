// Graphs: what streams are asked to do while they capture, in that order, done again at each replay.
//
// An event that one captured stream records and another waits for draws that one into the capture. A
// wait for any other event is part of the graph: a replay stops there until somebody records it.

#include <chrono>
#include <map>
#include <thread>
#include <utility>

#include "streams.h"

namespace sim {

struct Graph {
  struct Node {
    std::string name;
    Work work;
  };
  std::vector<Node> nodes;
  std::vector<Stream*> streams;
  size_t group = 0;  // where the open task group begins
  bool open = true;
};

namespace {

// Nodes of a graph that belong together, to be given new work.
struct Group {
  Graph* graph;
  size_t first, last;
};

struct Update {
  Group* group;
  size_t next;
};

constexpr auto kPatience = std::chrono::seconds(60);

std::mutex& capturing() {
  static auto* made = new std::mutex();
  return *made;
}

std::map<Stream*, Update>& updates() {
  static auto* made = new std::map<Stream*, Update>();
  return *made;
}

void add(Graph* graph, const char* name, Work work) {
  graph->nodes.push_back({name, std::move(work)});
}

aclError await(const EventPtr& event) {
  const auto deadline = Clock::now() + kPatience;
  while (Clock::now() < deadline) {
    MarkerPtr marker;
    {
      std::lock_guard<std::mutex> hold(event->lock);
      marker = event->last;
    }
    if (marker && marker->reached()) return ACL_SUCCESS;
    std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
  return fail(ACL_ERROR_RT_TASK_TIMEOUT, "a graph waits for an event that nobody records");
}

aclError replay(Graph* graph) {
  for (size_t at = 0;; ++at) {
    Work work;
    {
      std::lock_guard<std::mutex> hold(capturing());
      if (at >= graph->nodes.size()) return ACL_SUCCESS;
      work = graph->nodes[at].work;
    }
    if (aclError error = work()) return error;
  }
}

aclError not_capturing(const char* what) {
  return fail(ACL_ERROR_RT_STREAM_NOT_CAPTURED, std::string(what) + " on a stream that does not capture");
}

}  // namespace

bool capture_record(Stream* stream, const EventPtr& event) {
  std::lock_guard<std::mutex> hold(capturing());
  if (stream->capture) event->graph = stream->capture;
  return stream->capture != nullptr;
}

bool capture_wait(Stream* stream, const EventPtr& event) {
  std::lock_guard<std::mutex> hold(capturing());
  if (event->graph && event->graph->open) {
    if (!stream->capture) event->graph->streams.push_back(stream);
    stream->capture = event->graph;
    return true;
  }
  if (stream->capture) add(stream->capture, "wait", [event] { return await(event); });
  return stream->capture != nullptr;
}

bool capture_reset(Stream* stream, const EventPtr& event) {
  std::lock_guard<std::mutex> hold(capturing());
  if (!stream->capture) return false;
  add(stream->capture, "reset", [event] {
    std::lock_guard<std::mutex> hold(event->lock);
    event->last = nullptr;
    return ACL_SUCCESS;
  });
  return true;
}

aclError add_to_graph(Stream* stream, const char* name, Work& work, bool* added) {
  std::lock_guard<std::mutex> hold(capturing());
  auto update = updates().find(stream);
  *added = update != updates().end() || stream->capture;
  if (update != updates().end()) {
    auto& [group, next] = update->second;
    if (next >= group->last || group->graph->nodes[next].name != name) {
      return fail(ACL_ERROR_RT_MODEL_UPDATE_FAILED, std::string(name) + " is not what was captured");
    }
    group->graph->nodes[next++].work.swap(work);
  } else if (stream->capture) {
    add(stream->capture, name, std::exchange(work, nullptr));
  }
  return ACL_SUCCESS;
}

aclError refuse_while_capturing(Stream* stream, const char* what) {
  std::lock_guard<std::mutex> hold(capturing());
  if (!stream->capture) return ACL_SUCCESS;
  return fail(ACL_ERROR_RT_STREAM_CAPTURED, std::string(what) + " on a stream that captures");
}

}  // namespace sim

using namespace sim;

extern "C" {

aclError aclmdlRICaptureBegin(aclrtStream handle, aclmdlRICaptureMode) {
  Stream* stream = stream_of(handle);
  if (!stream) return ACL_ERROR_RT_INVALID_HANDLE;
  std::lock_guard<std::mutex> hold(capturing());
  if (stream->capture) return fail(ACL_ERROR_RT_STREAM_CAPTURED, "a stream that captures already");
  stream->capture = new Graph();
  stream->capture->streams.push_back(stream);
  trace("aclmdlRICaptureBegin stream=%p", handle);
  return ACL_SUCCESS;
}

aclError aclmdlRICaptureEnd(aclrtStream handle, aclmdlRI* model) {
  Stream* stream = stream_of(handle);
  std::lock_guard<std::mutex> hold(capturing());
  if (!stream || !stream->capture) return not_capturing("aclmdlRICaptureEnd");
  Graph* graph = stream->capture;
  graph->open = false;
  for (Stream* joined : graph->streams) joined->capture = nullptr;
  *model = graph;
  trace("aclmdlRICaptureEnd stream=%p nodes=%zu", handle, graph->nodes.size());
  return ACL_SUCCESS;
}

aclError aclmdlRICaptureGetInfo(aclrtStream handle, aclmdlRICaptureStatus* status, aclmdlRI* model) {
  Stream* stream = stream_of(handle);
  if (!stream) return ACL_ERROR_RT_INVALID_HANDLE;
  std::lock_guard<std::mutex> hold(capturing());
  *status = stream->capture ? ACL_MODEL_RI_CAPTURE_STATUS_ACTIVE : ACL_MODEL_RI_CAPTURE_STATUS_NONE;
  if (model) *model = stream->capture;
  return ACL_SUCCESS;
}

aclError aclmdlRICaptureThreadExchangeMode(aclmdlRICaptureMode* mode) {
  static thread_local aclmdlRICaptureMode kept = ACL_MODEL_RI_CAPTURE_MODE_GLOBAL;
  std::swap(kept, *mode);
  return ACL_SUCCESS;
}

aclError aclmdlRIExecuteAsync(aclmdlRI model, aclrtStream handle) {
  trace("aclmdlRIExecuteAsync stream=%p", handle);
  return submit(handle, "aclmdlRIExecuteAsync",
                [graph = static_cast<Graph*>(model)] { return replay(graph); });
}

// The work goes, and what it holds; events may still name the graph.
aclError aclmdlRIDestroy(aclmdlRI model) {
  std::vector<Graph::Node> gone;
  std::lock_guard<std::mutex> hold(capturing());
  gone.swap(static_cast<Graph*>(model)->nodes);
  trace("aclmdlRIDestroy");
  return ACL_SUCCESS;
}

aclError aclmdlRICaptureTaskGrpBegin(aclrtStream handle) {
  Stream* stream = stream_of(handle);
  std::lock_guard<std::mutex> hold(capturing());
  if (!stream || !stream->capture) return not_capturing("aclmdlRICaptureTaskGrpBegin");
  stream->capture->group = stream->capture->nodes.size();
  return ACL_SUCCESS;
}

aclError aclmdlRICaptureTaskGrpEnd(aclrtStream handle, aclrtTaskGrp* group) {
  Stream* stream = stream_of(handle);
  std::lock_guard<std::mutex> hold(capturing());
  if (!stream || !stream->capture) return not_capturing("aclmdlRICaptureTaskGrpEnd");
  *group = new Group{stream->capture, stream->capture->group, stream->capture->nodes.size()};
  return ACL_SUCCESS;
}

aclError aclmdlRICaptureTaskUpdateBegin(aclrtStream handle, aclrtTaskGrp group) {
  std::lock_guard<std::mutex> hold(capturing());
  auto* wanted = static_cast<Group*>(group);
  updates()[stream_of(handle)] = {wanted, wanted->first};
  trace("aclmdlRICaptureTaskUpdateBegin stream=%p", handle);
  return ACL_SUCCESS;
}

aclError aclmdlRICaptureTaskUpdateEnd(aclrtStream handle) {
  std::lock_guard<std::mutex> hold(capturing());
  auto found = updates().find(stream_of(handle));
  if (found == updates().end()) return ACL_ERROR_STREAM_TASK_GROUP_STATUS;
  const bool whole = found->second.next == found->second.group->last;
  updates().erase(found);
  return whole ? ACL_SUCCESS : fail(ACL_ERROR_RT_MODEL_UPDATE_FAILED, "an update left tasks out");
}

}  // extern "C"
