package com.example.interop;

import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import java.util.List;

/** Why a call was refused, for programs: what the trailers of an error carry. */
record Refusal(String reason, List<String> fields) {
  static Refusal of(StatusRuntimeException error) {
    var reason = "";
    var fields = List.<String>of();
    try {
      for (Any detail : StatusProto.fromThrowable(error).getDetailsList()) {
        if (detail.is(ErrorInfo.class)) {
          reason = detail.unpack(ErrorInfo.class).getReason();
        } else if (detail.is(BadRequest.class)) {
          fields = detail.unpack(BadRequest.class).getFieldViolationsList().stream()
              .map(BadRequest.FieldViolation::getField)
              .toList();
        }
      }
    } catch (InvalidProtocolBufferException e) {
      throw new IllegalArgumentException("the details cannot be read", e);
    }
    return new Refusal(reason, fields);
  }
}
